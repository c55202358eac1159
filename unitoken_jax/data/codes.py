"""VQ codes made beforehand: a folder `<data>.codes` beside a data set, keyed by image name.

codes-train.array_record-00000-of-00012   records {name: text, codes: int64[h * w]}, which TFDS reads too
features.json, dataset_info.json          what TFDS needs for it
names.npy    int64[N, 2]                  name hashes (sorted as uint64), record number
left_out.jsonl                            images that could not be read, and why
about.json                                how they were made; written last
"""

import bisect
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.data import code_shards
from unitoken_jax.data.code_shards import ABOUT, NAMES, CodesError
from unitoken_jax.data.image_store import encode_name, name_hash
from unitoken_jax.data.readers import array_record_module
from unitoken_jax.sequence.conversation import Conversation, ImageFile
from unitoken_jax.sequence.image import discrete_crop, open_image
from unitoken_jax.sequence.layout import has_codes
from unitoken_jax.storage.paths import expand_home, is_remote


def codes_path(data: str | os.PathLike) -> pathlib.Path:
    """Where the codes of a local data set live: train.jsonl -> train.jsonl.codes."""
    by_name = ":" in os.path.basename(data) and not os.path.exists(data)  # a TFDS data set
    if by_name or is_remote(data):
        raise CodesError(
            f"{data} is no local file, and codes are kept on a local disk: tokenize with `out`, and set the "
            "source's `codes`"
        )
    return pathlib.Path(expand_home(data)).with_name(codes_name(data))


def codes_name(data: str | os.PathLike) -> str:
    """The name of the folder of codes of `data`."""
    return pathlib.PurePosixPath(data).name.replace("*", "_").replace("?", "_") + ".codes"


def describe_codes(config: ModelConfig, **more: Any) -> dict:
    """What codes depend on, with what else is known of their making (JSON values)."""
    sequence = config.sequence
    shape = [side // config.vq.stride for side in sequence.image_size]
    return {"image_size": list(sequence.image_size), "crop": sequence.crop, "shape": shape, **more}


def write_codes(
    path: str | os.PathLike, codes: Mapping[str, np.ndarray], config: ModelConfig, **about: Any
) -> None:
    """Writes `codes` (image name -> int32[h, w]) to folder `path`, which appears whole or not at all.

    `about` says more on how they were made (JSON values), such as a fingerprint of the VQ parameters.
    """
    path = pathlib.Path(expand_home(path))
    names = sorted(codes)
    with code_shards.building(path, describe_codes(config, **about)) as folder:
        count = code_shards.shard_count(len(names))
        for shard in range(count):
            shard_names = names[shard * code_shards.SHARD :][: code_shards.SHARD]
            code_shards.write_shard(folder, shard, count, ((name, codes[name]) for name in shard_names), [])
        code_shards.finish(folder, path, count)


class Codes(Mapping):
    """VQ codes int32[h, w] by image name, each read when it is asked for.

    Picklable, for data workers. `about` is what about.json says of their making.
    """

    def __init__(self, path: pathlib.Path, about: dict):
        self.path, self.about = path, about
        self._names = np.load(path / NAMES, mmap_mode="r")
        self._hashes = np.ascontiguousarray(self._names[:, 0]).view(np.uint64)
        self._ends = np.cumsum([records for records, _ in about["shards"]]).tolist()
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict:
        return {"path": self.path, "about": self.about}

    def __setstate__(self, state: dict) -> None:
        type(self).__init__(self, **state)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        for record in range(len(self)):
            yield self._read(record)[0]

    def _find(self, name: str) -> int | None:
        """The record that holds the codes of image `name`; None: there is none."""
        wanted_hash = np.uint64(name_hash(name))
        i = int(np.searchsorted(self._hashes, wanted_hash))
        present = i < len(self._hashes) and self._hashes[i] == wanted_hash
        return int(self._names[i, 1]) if present else None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __getitem__(self, name: str) -> np.ndarray:
        record = self._find(name)
        if record is None:
            raise KeyError(name)
        stored, codes = self._read(record)
        if stored != name:
            raise CodesError(f"{self.path}: {name} and {stored} have the same hash; rename one of them")
        return codes

    def _read(self, record: int) -> tuple[str, np.ndarray]:
        """(image name, codes int32[h, w]) of record `record`. Raises CodesError where it is damaged."""
        shard = bisect.bisect_right(self._ends, record)
        file = self.path / code_shards.shard_name(shard, len(self._ends))
        try:
            if shard not in self._readers:
                self._readers[shard] = array_record_module().ArrayRecordReader(str(file))
            (data,) = self._readers[shard].read([record - (self._ends[shard - 1] if shard else 0)])
            name, codes = code_shards.decode_record(data)
            return name, codes.reshape(self.about["shape"])
        except Exception as error:  # what a library raises for a damaged file
            raise CodesError(f"{file} is damaged ({error}): run `unitoken tokenize` again") from error


def read_codes(path: str | os.PathLike, config: ModelConfig) -> Codes:
    """The codes in folder `path`. Raises CodesError where it is damaged or made for another model."""
    path = pathlib.Path(expand_home(path))
    if not path.is_dir():
        raise CodesError(f'no VQ codes at {path}: run `unitoken tokenize`, or set data.codes to "online"')
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        sizes = [size for _, size in about["shards"]]
        actual_sizes = [
            (path / code_shards.shard_name(i, len(sizes))).stat().st_size for i in range(len(sizes))
        ]
        if sizes != actual_sizes:
            raise ValueError(f"shard sizes are {actual_sizes}, written were {sizes}")
        codes = Codes(path, about)
    except Exception as error:  # whatever a damaged file leads to
        raise CodesError(f"{path} is damaged ({error}): run `unitoken tokenize` again") from error
    expected = describe_codes(config)
    if any(about[name] != expected[name] for name in ("image_size", "crop")):
        raise CodesError(
            f"{path} was made for image_size {about['image_size']} and crop {about['crop']!r}; this "
            f"model has {expected['image_size']} and {expected['crop']!r}: run `unitoken tokenize` again"
        )
    if about["shape"] != expected["shape"] or about["largest"] >= config.vq.codes:
        raise CodesError(
            f"{path} holds codes of shape {about['shape']}, up to {about['largest']}; expected "
            f"{expected['shape']} of 0 to {config.vq.codes - 1}: run `unitoken tokenize` again with it"
        )
    return codes


def codes_needed(conversation: Conversation, config: ModelConfig) -> list[ImageFile]:
    """The image files of a conversation that have discrete tokens, in reading order."""
    turns = [turn for turn in conversation.turns if has_codes(turn, config)]
    return [image for turn in turns for image in turn.parts if isinstance(image, ImageFile)]


def crop_to_encode(image: ImageFile, config: ModelConfig, seed: int = 0) -> np.ndarray:
    """uint8[H, W, 3] of an image, cropped as `config.sequence` says. Raises ImageError.

    A random crop depends on `seed` and the name alone.
    """
    offset = None
    if config.sequence.crop == "random":
        offset = tuple(np.random.default_rng([seed, zlib.crc32(encode_name(image.name))]).random(2))
    return discrete_crop(open_image(image.path), config.sequence.image_size, offset)
