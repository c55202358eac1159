"""A data set's images -> VQ codes, once, so that training need not make them (`data.codes = "offline"`)."""

import array
import concurrent.futures
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from unitoken_jax.config import SourceConfig
from unitoken_jax.data import code_shards, index_build
from unitoken_jax.data.codes import codes_name, codes_needed, codes_path, crop_to_encode, describe_codes
from unitoken_jax.data.image_store import name_hash
from unitoken_jax.data.index import data_digest, index_folder
from unitoken_jax.data.readers import TEXT_FILES, resolve_source
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.generate.vq import encode_images
from unitoken_jax.sequence.conversation import ImageFile, parse_conversation
from unitoken_jax.sequence.errors import RowError, row_errors
from unitoken_jax.storage.atomic import save_array
from unitoken_jax.storage.paths import expand_home, is_remote

WORK = "work.npy"  # in the folder of work in progress: which image of which conversation comes when
THREADS = 8  # image files decoded at one time, while the device encodes the batch before


def tokenize(
    model: Runtime | str | os.PathLike,
    data: SourceConfig | str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    images: str | os.PathLike = "",
    batch: int = BATCH,
    on_error: Callable[[Exception], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> pathlib.Path:
    """Writes the codes of every image in `data`; the path of the codes' folder (data/codes.py).

    Stopped, it goes on with the shard it was at when called again. The folder appears when all is done.

    Args:
      data: a JSON or JSONL file, with `images` (default: its folder); or any source.
      out: a folder, None the data's own. In another folder a data file is copied beside its codes; training
        then reads that copy, with `images` pointing to the old folder, or the old one with
        `SourceConfig.codes`.
      on_error: takes the error of each bad conversation or image, which is left out; None: the first raises
        RowError, beginning with file and line.
      share: (index, count) of this process among those that write together; the last one to end joins.
    """
    source = data if isinstance(data, SourceConfig) else SourceConfig(str(data), images=str(images))
    source = resolve_source(source)
    model = model if isinstance(model, Runtime) else Runtime.load(model)
    model.require("vqgan/encoder", "tokenizing")
    folder = codes_path(source.path).parent if out is None else pathlib.Path(expand_home(out))
    path = folder / codes_name(source.path)
    about = _about(model, source)
    if not code_shards.is_complete(path, about):
        with code_shards.building(path, about) as folder:
            encoder = _SourceEncoder(model, source, folder / code_shards.WORK, batch, on_error)
            count = code_shards.shard_count(len(encoder))
            _write_shards(encoder, folder, range(share[0], count, share[1]), count)
            code_shards.finish(folder, path, count)
    if out is not None and source.kind in TEXT_FILES and not is_remote(source.path):
        _copy_beside(pathlib.Path(source.path), path.parent)
    return path


def _write_shards(encoder: "_SourceEncoder", folder: pathlib.Path, shards: range, count: int) -> None:
    """Writes those of `shards`, out of `count`, that are not in `folder`."""
    with tqdm(total=len(encoder), unit="image", disable=None) as bar:  # None: only on a terminal
        for shard in shards:
            end = min((shard + 1) * code_shards.SHARD, len(encoder))
            images = range(shard * code_shards.SHARD, end)
            if code_shards.has_shard(folder, shard, count):
                bar.update(len(images))
                continue
            left_out: list[dict] = []
            codes = encoder.encode(images, left_out, bar)
            code_shards.write_shard(folder, shard, count, codes, left_out)


def _about(model: Runtime, source: SourceConfig) -> dict:
    codebook = np.ascontiguousarray(model.vq_params["codebook"])
    return describe_codes(
        model.config,
        encoding=model.config.sequence.encoding,
        shard=code_shards.SHARD,
        codebook_sha256=hashlib.sha256(codebook.tobytes()).hexdigest(),
        data=data_digest(source, index_folder(source)),
    )


def _copy_beside(data: pathlib.Path, folder: pathlib.Path) -> None:
    copy = folder / data.name
    if not (copy.exists() and copy.samefile(data)):
        shutil.copyfile(data, copy)


class _SourceEncoder:
    """The distinct images of a source that have codes, in order of first appearance, and what encodes them.

    Which these are is found once, and kept in `folder`.
    """

    def __init__(
        self,
        model: Runtime,
        source: SourceConfig,
        folder: pathlib.Path,
        batch: int,
        on_error: Callable[[Exception], None] | None,
    ):
        self._model, self._batch, self._on_error = model, batch, on_error
        folder.mkdir(exist_ok=True)
        spec = index_build.IndexBuildSpec(source, model.config, model.tokenizer, folder, "")
        index_build.prepare(spec, on_error)
        self._measurer = index_build.LengthIndexer(spec, folder)
        if not (folder / WORK).exists():
            save_array(folder / WORK, self._find())
        self._table = np.load(folder / WORK)

    def __len__(self) -> int:
        return len(self._table)

    def encode(self, numbers: range, left_out: list[dict], bar: tqdm) -> Iterator[tuple[str, np.ndarray]]:
        """(name, int32[h, w]) of the images `numbers`, in order. The next batch is read from files meanwhile.

        A bad one is added to `left_out`, or its RowError raised where nothing takes errors.
        """
        batches = [numbers[start : start + self._batch] for start in range(0, len(numbers), self._batch)]
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            crop_batches = (pool.map(self._crop, batch) for batch in batches)
            next_crops = next(crop_batches, ())
            for batch in batches:
                crops = list(next_crops)
                next_crops = next(crop_batches, ())
                for name, error in crops:
                    if isinstance(error, RowError):
                        self._report(error)
                        left_out.append({"name": name, "reason": error.reason, "message": str(error)})
                good = [(name, crop) for name, crop in crops if not isinstance(crop, RowError)]
                if good:
                    names, stack = zip(*good)
                    yield from zip(names, encode_images(self._model, np.stack(stack), self._batch))
                bar.update(len(batch))

    def _crop(self, i: int) -> tuple[str, np.ndarray | RowError]:
        """Image `i`'s name, and its discrete crop uint8[H, W, 3] or what is wrong with it."""
        row, number = self._table[i].tolist()
        image = self._needed(row)[number]
        try:
            with row_errors(self._measurer.records.location(row)):
                return image.name, crop_to_encode(image, self._model.config)
        except RowError as error:
            return image.name, error

    def _report(self, error: Exception) -> None:
        if self._on_error is None:
            raise error
        self._on_error(error)

    def _needed(self, row: int) -> list[ImageFile]:
        records, images = self._measurer.records, self._measurer.images
        conversation = parse_conversation(
            records.read(row), records.location(row), images, need_answers=False
        )
        return codes_needed(conversation, self._model.config)

    def _find(self) -> np.ndarray:
        """int64[N, 2]: the conversation of each distinct image, and which of its images that is."""
        hashes, rows, numbers = array.array("Q"), array.array("q"), array.array("q")
        for row in tqdm(range(len(self._measurer.records)), unit="row", disable=None, leave=False):
            try:
                needed = self._needed(row)
            except RowError as error:
                self._report(error)
                continue
            hashes.extend(name_hash(image.name) for image in needed)
            rows.extend([row] * len(needed))
            numbers.extend(range(len(needed)))
        _, first = np.unique(np.array(hashes), return_index=True)
        return np.stack([np.array(rows), np.array(numbers)], 1)[np.sort(first)].astype(np.int64)
