"""A model directory -> another of the same networks, parameter by parameter: what quantizing and merging
share. Larger models than fit into memory go through; what is interrupted goes on with the same call.
"""

import concurrent.futures
import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from unitoken_jax.checkpoint.model_directory import (
    PARAMS,
    LoadedModel,
    check_destination,
    finalize,
    staging_path,
)
from unitoken_jax.checkpoint.param_store import ArraySpec, ParamStore, StoredParams
from unitoken_jax.storage.paths import absolute


class Rewrite(NamedTuple):
    """What becomes of a model's parameters.

    `arrays`: for each parameter's path those that it becomes, by their own paths, in the order of `convert`.
    `convert(path, layer)`: the values of them for a layer of the parameter, or (None) for all of it.
    `manifest`: what the new manifest.json says besides its header.
    `purpose`: any JSON value that says what the values depend on: what an interrupted call with another one
    left is not gone on with.
    `threads`: how many pieces are in memory at one time.
    """

    arrays: Mapping[str, Mapping[str, ArraySpec]]
    convert: Callable[[str, int | None], Mapping[str, np.ndarray]]
    manifest: Mapping[str, Any]
    purpose: Any
    threads: int


def check_rewrite(model: str | os.PathLike, out: str | os.PathLike) -> None:
    """Raises FileExistsError where `out` is something else than a model directory, ValueError where it is
    `model`."""
    check_destination(out)
    out = absolute(out)
    if out.resolve() == absolute(model).resolve():
        raise ValueError(
            f"{out} is the model itself, from which nothing could lead back: name another folder"
        )


def unchanged_array(stored: StoredParams, path: str) -> dict[str, ArraySpec]:
    """`Rewrite.arrays` of a parameter that keeps its shape and dtype."""
    leaf = stored.shapes[path]
    return {path: ArraySpec(tuple(leaf.shape), np.dtype(leaf.dtype), "/layers/" in path)}


def rewrite_model(opened: LoadedModel, out: str | os.PathLike, rewrite: Rewrite) -> int:
    """Writes the model directory `out`, complete or not at all, of the one that `opened` (`open_model`) is;
    the number of bytes of its parameters."""
    out = absolute(out)
    arrays = {name: spec for specs in rewrite.arrays.values() for name, spec in specs.items()}
    store = ParamStore(staging_path(out), arrays, rewrite.purpose)
    try:
        _write(opened.params, store, rewrite)
        store.publish(store.folder / PARAMS)
        finalize(out, opened.config, opened.tokenizer, rewrite.manifest)
    except Exception:  # an interrupt keeps what was done, for the next call
        shutil.rmtree(store.folder, ignore_errors=True)
        raise
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in arrays.values())


def _write(stored: StoredParams, store: ParamStore, rewrite: Rewrite) -> None:
    """Writes every parameter layer by layer; what is there already is left out."""
    pieces: list[tuple[str, int | None]] = []
    for path, leaf in stored.shapes.items():
        *_, last = rewrite.arrays[path]
        layers = range(leaf.shape[0]) if store.arrays[last].stacked else (None,)
        pieces += [(path, layer) for layer in layers if not store.is_done(last, layer)]

    def write_piece(piece: tuple[str, int | None]) -> None:
        for name, value in rewrite.convert(*piece).items():
            store.write(name, piece[1], value)

    pool = concurrent.futures.ThreadPoolExecutor(rewrite.threads)
    with tqdm(total=len(pieces), unit="array", disable=None) as bar:
        try:
            for _ in pool.map(write_piece, pieces):
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
