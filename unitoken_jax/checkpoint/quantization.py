"""A model directory -> one whose decoder's kernels are stored in 8 or 4 bits."""

import concurrent.futures
import functools
import math
import os
import shutil
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unitoken_jax.checkpoint.adapter import fingerprint
from unitoken_jax.checkpoint.model_directory import (
    PARAMS,
    QUANTIZED_FORMAT,
    check_destination,
    finalize,
    open_unquantized,
    staging_path,
)
from unitoken_jax.checkpoint.param_store import (
    SCALES,
    VALUES,
    ArraySpec,
    ParamStore,
    StoredParams,
    quantized_arrays,
)
from unitoken_jax.model.quantize import QUANTIZED_KERNELS, pack_int4, quantize_layer
from unitoken_jax.storage.paths import absolute


def quantize_model(model: str | os.PathLike, out: str | os.PathLike, bits: int) -> list[str]:
    """Writes the model directory `model` with its decoder's kernels in 8 or 4 `bits` to the model directory
    `out`, complete or not at all; lines that say what was done.

    `UniToken.load(out)` computes what `UniToken.load(model, quantize="int8")` does, and reads half the bytes
    of bfloat16, or a quarter. A layer's kernel a thread is in memory. Interrupted, the same call goes on.

    Raises FileExistsError where `out` is something else than a model directory, ValueError where it is
    `model`, and where `model` is quantized already or 4 bits do not fit its shapes.
    """
    check_destination(out)
    model, out = absolute(model), absolute(out)
    if out.resolve() == model.resolve():
        raise ValueError(
            f"{out} is the model itself, from which nothing could lead back: name another folder"
        )
    config, stored, tokenizer, manifest = open_unquantized(model, "quantizing")
    arrays: dict[str, ArraySpec] = {}
    for path, leaf in stored.shapes.items():
        if QUANTIZED_KERNELS.match(path):
            arrays |= quantized_arrays(path, tuple(leaf.shape), bits)
        else:
            arrays[path] = ArraySpec(tuple(leaf.shape), np.dtype(leaf.dtype), "/layers/" in path)
    store = ParamStore(staging_path(out), arrays, {"model": str(model), "manifest": manifest, "bits": bits})
    try:
        _write(stored, store, bits)
        store.publish(store.folder / PARAMS)
        made = {key: value for key, value in manifest.items() if key not in ("created", "versions")}
        made |= {"format": QUANTIZED_FORMAT, "quantization": f"int{bits}", "quantized_from": model.name}
        made |= {"base_fingerprint": fingerprint(model)}  # an adapter of the model fits this one too
        finalize(out, config, tokenizer, made)
    except Exception:  # an interrupt keeps what was done, for the next call
        shutil.rmtree(store.folder, ignore_errors=True)
        raise
    size = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in arrays.values())
    return [f"{out}: the decoder in int{bits}, {size / 1e9:.2f} GB"]


class _Piece(NamedTuple):
    """A parameter, or a layer of it, to read and write."""

    path: str
    layer: int | None
    last: str  # of the arrays that it becomes


def _write(stored: StoredParams, store: ParamStore, bits: int) -> None:
    """Writes every parameter, quantized where it is to be, a thread a core; those that are not there yet."""
    pieces = []
    for path, leaf in stored.shapes.items():
        last = path + SCALES if QUANTIZED_KERNELS.match(path) else path
        layers = range(leaf.shape[0]) if store.arrays[last].stacked else (None,)
        pieces += [_Piece(path, layer, last) for layer in layers if not store.is_done(last, layer)]
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with tqdm(total=len(pieces), unit="array", disable=None) as bar:
        try:
            for _ in pool.map(functools.partial(_write_piece, stored, store, bits), pieces):
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_piece(stored: StoredParams, store: ParamStore, bits: int, piece: _Piece) -> None:
    """Reads a piece, quantizes it where its parameter is to be, and writes it."""
    value = stored.read(piece.path, piece.layer)
    if piece.last == piece.path:
        store.write(piece.path, piece.layer, value)
        return
    kernel = quantize_layer(value, bits)
    values = np.asarray(kernel.values)
    store.write(piece.path + VALUES, piece.layer, pack_int4(values) if bits == 4 else values)
    store.write(piece.path + SCALES, piece.layer, np.asarray(kernel.scales))
