"""Published PyTorch weights -> a model directory (`export` goes back). Both read `convert/torch/rules.py`.

`convert/` reads and names weights with numpy alone; here they meet the networks' shapes and Orbax.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util
from flax.core import meta

from unitoken_jax.checkpoint.model_directory import (
    PARAMS,
    check_destination,
    finalize,
    open_model,
    staging_path,
)
from unitoken_jax.checkpoint.param_store import ArraySpec, ParamStore, contiguous
from unitoken_jax.config import ModelConfig, to_dict
from unitoken_jax.convert.torch.assemble import Parameter
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector
from unitoken_jax.convert.torch.sources import Sources, checksum, describe, open_sources, parameters
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.paths import as_path, user_cache

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_THREADS = 4
_HUB_FOLDERS = ("HF_HOME", "HF_HUB_CACHE")  # environment variables: where huggingface_hub keeps its files
LICENCES = (
    "Chameleon's weights and VQ-GAN: Meta's Chameleon Research License (non-commercial research)",
    "SigLIP: Apache-2.0; UniToken: see the release the weights came from",
)


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """How weights are converted; what is None is as the checkpoint says."""

    dtype: str | None = None  # Of the stored weights but the VQ-GAN's: a key of DTYPES.
    image_size: int | tuple[int, int] = 512  # Side of the discrete crop in pixels, or (height, width).
    resolution: Literal["anyres", "base"] | None = None  # Of an image's features.
    stage_one_start: bool = False  # Whether the image columns of `lm_head` become zero.
    seed: int = 0  # Of the random adapter, where a decoder alone is converted.
    verify: bool = False  # Whether the result is read again and every value compared with the sources.

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConversionError(f"--dtype {self.dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
        if self.resolution not in (None, "anyres", "base"):
            raise ConversionError(f"--resolution {self.resolution!r} is unknown; expected anyres or base")


def convert(
    checkpoint: str | os.PathLike,
    siglip: str | os.PathLike | None = None,
    vqgan: str | os.PathLike | None = None,
    out: str | os.PathLike = "model",
    options: ConvertOptions = ConvertOptions(),
) -> list[str]:
    """Writes the model directory `out`, complete or not at all; lines that say what was done.

    Args:
      checkpoint: a UniToken checkpoint, or a decoder alone (Lumina-mGPT, Chameleon): folder, or hub id.
      siglip: SigLIP folder. Its weights are used where the checkpoint has none, else its config alone.
      vqgan: Meta's `chameleon/tokenizer` folder; without it the VQ encoder may come from the checkpoint.
      out: the model directory, or an older one that is replaced.
      options: dtype, image size and the like.
    Raises ConversionError listing every problem found.
    """
    check_destination(out)  # before minutes of reading
    report = ProblemCollector()
    folder = _local_folder(checkpoint)
    siglip, vqgan = (source if source is None else _local_folder(source) for source in (siglip, vqgan))
    sources = open_sources(
        folder, siglip, vqgan, report, image_size=options.image_size, resolution=options.resolution
    )
    lazy = parameters(sources, expected_shapes(sources.config), report, one_dtype=options.dtype is None)
    report.check(str(folder))
    tokenizer = Tokenizer.load(sources.tokenizer)
    validate_config(sources.config, tokenizer.vocabulary)
    plan = _plan_writes(lazy, sources, tokenizer, options)
    store = ParamStore(staging_path(out), plan.arrays, _purpose(sources, options))
    try:
        _write(store, plan.values, sources.files)
        if options.verify:
            _verify(store, plan.values)
        store.publish(store.folder / PARAMS)
        manifest = {
            "sources": {name: store.done[_checksum_key(name)] for name in sources.files},
            "left_out": {reason: len(names) for reason, names in report.ignored.items()},
            "notes": [*sources.notes, *report.notes],
            "licences": list(LICENCES),
        }
        finalize(out, sources.config, tokenizer, manifest)
    except Exception:  # an interrupt keeps what was done, for the next call
        shutil.rmtree(store.folder, ignore_errors=True)
        raise
    total = sum(math.prod(spec.shape) for spec in plan.arrays.values())
    return [f"{out}: {total:,} parameters", *describe(report, sources.notes)]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `config`; no memory."""
    from unitoken_jax.model.init import abstract_params

    flat = traverse_util.flatten_dict(meta.unbox(abstract_params(config)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _local_folder(source: str | os.PathLike) -> pathlib.Path:
    """A folder: itself, or the snapshot of a hub id ("owner/name") where huggingface_hub is installed."""
    if (folder := as_path(source)).is_dir():
        return folder
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise ConversionError(f"{source} is no folder")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ConversionError(
            f"{source} is no folder; for a hub id, install huggingface_hub (pip install 'unitoken_jax[hub]')"
        ) from None
    if not any(os.environ.get(name) for name in _HUB_FOLDERS) and user_cache() is None:
        raise ConversionError(f"{source}: no home directory is known to keep the hub's files in: set HF_HOME")
    try:
        return pathlib.Path(snapshot_download(str(source)))
    except Exception as error:  # of several libraries
        raise ConversionError(f"{source} is no folder, and no hub gave it ({error})") from None


class _Value(NamedTuple):
    """A layer of a parameter, or (None) all of it, and the file that `read` reads ("": none)."""

    path: str
    layer: int | None
    file: str
    read: Callable[[], np.ndarray]


class _WritePlan(NamedTuple):
    """The arrays of the model directory by path, and the values to write into them."""

    arrays: dict[str, ArraySpec]
    values: list[_Value]


def _plan_writes(
    lazy: Mapping[str, Parameter], sources: Sources, tokenizer: Tokenizer, options: ConvertOptions
) -> _WritePlan:
    """What to write: what the files give, what no file gives, and what stage I wants otherwise."""
    from unitoken_jax.model.init import init_network

    arrays, values = {}, []
    for path, parameter in lazy.items():
        dtype = parameter.dtype
        if options.dtype is not None and not path.startswith("vqgan/"):
            dtype = DTYPES[options.dtype]
        arrays[path] = ArraySpec(parameter.shape, dtype, parameter.pieces[0].mapping.layer is not None)
        for piece in parameter.pieces:
            values.append(_Value(path, piece.mapping.layer, piece.tensor.file, piece.read))
    for network in sources.fresh:
        tree = {network: init_network(sources.config, network, options.seed)}
        for path, value in traverse_util.flatten_dict(tree, sep="/").items():
            arrays[path] = ArraySpec(value.shape, arrays["decoder/lm_head/kernel"].dtype)
            values.append(_Value(path, None, "", functools.partial(np.asarray, value)))
    if options.stage_one_start:
        codes = tokenizer.vocabulary.code_ids
        values = [
            value._replace(read=functools.partial(_with_zero_columns, codes, value.read))
            if value.path == "decoder/lm_head/kernel"
            else value
            for value in values
        ]
    return _WritePlan(arrays, values)


def _with_zero_columns(columns: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` gives, a matrix, with zeros in these columns."""
    value = read()
    value = contiguous(value, value.dtype)
    value[:, columns] = 0
    return value


def _purpose(sources: Sources, options: ConvertOptions) -> dict:
    """What the stored values depend on: an interrupted conversion goes on where all of it is the same."""
    files = {
        name: (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
        for name, path in sources.files.items()
    }
    settings = {name: getattr(options, name) for name in ("dtype", "stage_one_start", "seed")}
    return {"files": files, "config": to_dict(sources.config), "options": settings}


def _checksum_key(name: str) -> str:
    """What the store's journal calls the checksum of the source file `name`."""
    return f"sha256 of {name}"


def _write(store: ParamStore, values: Sequence[_Value], files: Mapping[str, pathlib.Path]) -> None:
    """Values file by file, each file's checksum beside them while its bytes are in the system's cache."""
    from tqdm import tqdm

    def write_value(value: _Value) -> int:
        store.write(value.path, value.layer, value.read())
        return store.arrays[value.path].piece_bytes

    def note_checksum(name: str) -> int:
        store.note(_checksum_key(name), checksum(files[name]))
        return 0

    jobs: list[Callable[[], int]] = []
    for name, path in {**files, "": ""}.items():
        if name and _checksum_key(name) not in store.done:
            jobs.append(functools.partial(note_checksum, name))
        for value in values:
            if value.file == str(path) and not store.is_done(value.path, value.layer):
                jobs.append(functools.partial(write_value, value))
    total = sum(store.arrays[value.path].piece_bytes for value in values)
    done = sum(
        store.arrays[value.path].piece_bytes for value in values if store.is_done(value.path, value.layer)
    )
    pool = concurrent.futures.ThreadPoolExecutor(min(_THREADS, max(2, os.cpu_count() or 1)))
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, disable=None) as bar:
        try:
            for size in pool.map(lambda job: job(), jobs):
                bar.update(size)
        finally:
            pool.shutdown(cancel_futures=True)


def _verify(store: ParamStore, values: Sequence[_Value]) -> None:
    """Raises ConversionError where the disk does not hold what the sources say."""
    wrong = []
    for value in values:
        expected, dtype = value.read(), store.arrays[value.path].dtype
        for rows in store.blocks(value.path):
            stored = store.read(value.path, value.layer, rows)
            if stored.dtype != dtype or stored.tobytes() != contiguous(expected[rows], dtype).tobytes():
                wrong.append(value.path)
                break
    if wrong:
        raise ConversionError(f"the disk does not hold what was written: {', '.join(wrong)}. Convert again")


def inspect(model: str | os.PathLike) -> list[str]:
    """Lines on a model directory: its sources, settings, and every parameter with shape and dtype."""
    config, params, _, manifest = open_model(model)
    lines = [f"{model}: made {manifest.get('created', 'at an unknown time')}"]
    for name, source in manifest.get("sources", {}).items():
        lines.append(f"source {name}: {source.get('bytes', 0):,} bytes, sha256 {source.get('sha256', '?')}")
    lines += [f"note: {note}" for note in manifest.get("notes", [])]
    made = ("recipe", "settings", "minutes", "scores", "merged_from")  # of the package's models, of merging
    lines += [f"{name}: {manifest[name]}" for name in made if name in manifest]
    for field in dataclasses.fields(config):
        lines.append(f"{field.name}: {getattr(config, field.name)}")
    sizes: collections.Counter[str] = collections.Counter()
    for path, leaf in sorted(params.shapes.items()):
        lines.append(f"{path:<60} {tuple(leaf.shape)!s:<24} {leaf.dtype}")
        sizes[path.split("/")[0]] += math.prod(leaf.shape)
    return lines + [f"{network}: {size:,} parameters" for network, size in sorted(sizes.items())]
