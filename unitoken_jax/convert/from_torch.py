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

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_THREADS = 4
LICENCES = (
    "Chameleon's weights and VQ-GAN: Meta's Chameleon Research License (non-commercial research)",
    "SigLIP: Apache-2.0; UniToken: see the release the weights came from",
)


def convert(
    checkpoint: str | os.PathLike,
    siglip: str | os.PathLike | None = None,
    vqgan: str | os.PathLike | None = None,
    out: str | os.PathLike = "model",
    *,
    dtype: str | None = None,
    image_size: int | tuple[int, int] = 512,
    resolution: Literal["anyres", "base"] | None = None,
    stage_one_start: bool = False,
    verify: bool = False,
    seed: int = 0,
) -> list[str]:
    """Writes the model directory `out`, complete or not at all; lines that say what was done.

    Args:
      checkpoint: a UniToken checkpoint, or a decoder alone (Lumina-mGPT, Chameleon): folder, or hub id.
      siglip: SigLIP folder. Its weights are used where the checkpoint has none, else its config alone.
      vqgan: Meta's `chameleon/tokenizer` folder; without it the VQ encoder may come from the checkpoint.
      dtype: of the stored weights ("float32", "bfloat16", "float16"), the VQ-GAN's apart; None: as they come.
      image_size: side of the discrete crop in pixels, or (height, width).
      resolution: "anyres" or "base"; None: by the checkpoint's `architectures`.
      stage_one_start: zero the image rows of `lm_head`.
      verify: read the directory again and compare every value with the sources.
      seed: of the random adapter, where a decoder alone is converted.
    Raises ConversionError listing every problem found.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"--dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    if resolution not in (None, "anyres", "base"):
        raise ConversionError(f"--resolution {resolution!r} is unknown; expected anyres or base")
    check_destination(out)  # before minutes of reading
    report = ProblemCollector()
    folder = _local(checkpoint)
    siglip, vqgan = (source if source is None else _local(source) for source in (siglip, vqgan))
    sources = open_sources(folder, siglip, vqgan, report, image_size=image_size, resolution=resolution)
    lazy = parameters(sources, expected_shapes(sources.config), report, one_dtype=dtype is None)
    report.check(str(folder))
    tokenizer = Tokenizer.load(sources.tokenizer)
    validate_config(sources.config, tokenizer.vocabulary)
    work = _work(lazy, sources, tokenizer, stage_one_start, dtype, seed)
    options = {"dtype": dtype, "stage_one_start": stage_one_start, "seed": seed}
    store = ParamStore(staging_path(out), work.arrays, _purpose(sources, options))
    try:
        _write(store, work.values, sources.files)
        if verify:
            _verify(store, work.values)
        store.publish(store.folder / PARAMS)
        manifest = {
            "sources": {name: store.done[_digest(name)] for name in sources.files},
            "left_out": {reason: len(names) for reason, names in report.ignored.items()},
            "notes": list(sources.notes),
            "licences": list(LICENCES),
        }
        finalize(out, sources.config, tokenizer, manifest)
    except Exception:  # an interrupt keeps what was done, for the next call
        shutil.rmtree(store.folder, ignore_errors=True)
        raise
    total = sum(math.prod(spec.shape) for spec in work.arrays.values())
    return [f"{out}: {total:,} parameters", *describe(report, sources.notes)]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `config`; no memory."""
    from unitoken_jax.model.init import abstract_params

    flat = traverse_util.flatten_dict(meta.unbox(abstract_params(config)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _local(source: str | os.PathLike) -> pathlib.Path:
    """A folder: itself, or the snapshot of a hub id ("owner/name") where huggingface_hub is installed."""
    if pathlib.Path(source).is_dir():
        return pathlib.Path(source)
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise ConversionError(f"{source} is no folder")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ConversionError(
            f"{source} is no folder; for a hub id, install huggingface_hub (pip install 'unitoken_jax[hub]')"
        ) from None
    try:
        return pathlib.Path(snapshot_download(str(source)))
    except Exception as error:  # of several libraries
        raise ConversionError(f"{source} is no folder, and no hub gave it ({error})") from None


class _Value(NamedTuple):
    """A layer of a parameter, or (None) all of it."""

    path: str
    layer: int | None
    file: str  # that it is read from; empty: none
    read: Callable[[], np.ndarray]


class _Work(NamedTuple):
    arrays: dict[str, ArraySpec]
    values: list[_Value]


def _work(
    lazy: Mapping[str, Parameter],
    sources: Sources,
    tokenizer: Tokenizer,
    stage_one_start: bool,
    dtype: str | None,
    seed: int,
) -> _Work:
    """What to write: what the files give, what no file gives, and what stage I wants otherwise."""
    from unitoken_jax.model.init import init_network

    arrays, values = {}, []
    for path, parameter in lazy.items():
        kind = parameter.dtype if dtype is None or path.startswith("vqgan/") else DTYPES[dtype]
        arrays[path] = ArraySpec(parameter.shape, kind, parameter.pieces[0].mapping.layer is not None)
        for piece in parameter.pieces:
            values.append(_Value(path, piece.mapping.layer, piece.tensor.file, piece.read))
    for network in sources.fresh:
        tree = {network: init_network(sources.config, network, seed)}
        for path, value in traverse_util.flatten_dict(tree, sep="/").items():
            arrays[path] = ArraySpec(value.shape, arrays["decoder/lm_head/kernel"].dtype)
            values.append(_Value(path, None, "", functools.partial(np.asarray, value)))
    if stage_one_start:
        codes = tokenizer.vocabulary.code_ids
        values = [
            value._replace(read=functools.partial(_without, codes, value.read))
            if value.path == "decoder/lm_head/kernel"
            else value
            for value in values
        ]
    return _Work(arrays, values)


def _without(columns: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray:
    value = read()
    value = contiguous(value, value.dtype)
    value[:, columns] = 0
    return value


def _purpose(sources: Sources, options: Mapping) -> dict:
    """What the stored values depend on: an interrupted conversion goes on where all of it is the same."""
    files = {
        name: (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
        for name, path in sources.files.items()
    }
    return {"files": files, "config": to_dict(sources.config), "options": dict(options)}


def _digest(name: str) -> str:
    return f"sha256 of {name}"


def _write(store: ParamStore, values: Sequence[_Value], files: Mapping[str, pathlib.Path]) -> None:
    """Values file by file, each file's checksum beside them while its bytes are in the system's cache."""
    from tqdm import tqdm

    def put(value: _Value) -> int:
        store.write(value.path, value.layer, value.read())
        return store.arrays[value.path].piece_bytes

    def sum_up(name: str) -> int:
        store.note(_digest(name), checksum(files[name]))
        return 0

    jobs: list[Callable[[], int]] = []
    for name, path in {**files, "": ""}.items():
        if name and _digest(name) not in store.done:
            jobs.append(functools.partial(sum_up, name))
        for value in values:
            if value.file == str(path) and not store.is_done(value.path, value.layer):
                jobs.append(functools.partial(put, value))
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
    for field in dataclasses.fields(config):
        lines.append(f"{field.name}: {getattr(config, field.name)}")
    sizes: collections.Counter[str] = collections.Counter()
    for path, leaf in sorted(params.shapes.items()):
        lines.append(f"{path:<60} {tuple(leaf.shape)!s:<24} {leaf.dtype}")
        sizes[path.split("/")[0]] += math.prod(leaf.shape)
    return lines + [f"{network}: {size:,} parameters" for network, size in sorted(sizes.items())]
