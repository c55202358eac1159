"""A model directory and an adapter of it -> an ordinary model directory that computes the same."""

import os
import pathlib

import numpy as np

from unitoken_jax.checkpoint.adapter import Adapter, check_fit, load_adapter, model_of
from unitoken_jax.checkpoint.model_directory import open_unquantized
from unitoken_jax.checkpoint.rewrite import Rewrite, check_rewrite, rewrite_model, unchanged_array
from unitoken_jax.model.layers import LORA_A, LORA_B
from unitoken_jax.model.lora import PAIR
from unitoken_jax.storage.paths import absolute

_BLOCK_BYTES = 2**20  # of float32 that a sum is made in at one time
_KEPT = ("sources", "licences", "notes")  # of the base's manifest; what it says of scores is of the base


def merge_adapter(
    adapter: str | os.PathLike, out: str | os.PathLike, model: str | os.PathLike | None = None
) -> list[str]:
    """Writes what the adapter folder `adapter` makes of its base, the model directory `model`, to the model
    directory `out`, complete or not at all; lines that say what was done.

    Each kernel becomes W + scale A B, the product and the sum in float32, and only that is rounded to the
    base's dtype; parameters that were trained whole take the place of the base's. Beside the adapter, the
    memory of little more than the largest tensor is taken, and what tensorstore takes to read a compressed
    one. Interrupted, the same call goes on.

    `model` None: the adapter's own base where it still is, else the model that is meant without a name.

    Raises FileNotFoundError without an adapter or a model, FileExistsError where `out` is something else than
    a model directory, ValueError where it is `model`, where `model` is not what the adapter was trained on or
    is quantized, where the adapter does not fit, and where a sum is beyond float16.
    """
    change = load_adapter(adapter)
    model = absolute(model_of(model, change))
    check_rewrite(model, out)
    opened = open_unquantized(model, "merging")
    stored = opened.params
    check_fit(change, opened.config)
    changed = {PAIR.sub("/kernel", path) for path in change.params}
    if absent := sorted(changed - stored.shapes.keys()):
        raise ValueError(f"{model} has no {', '.join(absent)}, which the adapter {change.path} changes")

    def convert(path: str, layer: int | None) -> dict[str, np.ndarray]:
        return {path: _merged(change, path, layer, stored.read(path, layer))}

    identity = change.identity()
    manifest = {key: opened.manifest[key] for key in _KEPT if key in opened.manifest}
    manifest["merged_from"] = {
        "base": model.name,
        "base_fingerprint": change.base.fingerprint,
        "adapter": pathlib.PurePath(change.path).name,
        **identity,
        **{key: change.manifest[key] for key in ("step", "scores") if key in change.manifest},
    }
    arrays = {path: unchanged_array(stored, path) for path in stored.shapes}
    purpose = {"model": str(model), "manifest": opened.manifest, "adapter": identity}
    size = rewrite_model(opened, out, Rewrite(arrays, convert, manifest, purpose, threads=1))
    return [f"{absolute(out)}: {model.name} with {change.path} merged into it, {size / 1e9:.2f} GB"]


def _merged(adapter: Adapter, path: str, layer: int | None, value: np.ndarray) -> np.ndarray:
    """`value`, of the base's parameter `path` or a layer of it, with what `adapter` makes of it written into
    it. Raises ValueError where that is beyond its dtype."""

    def of_adapter(name: str) -> np.ndarray | None:
        found = adapter.params.get(name)
        return found if found is None or layer is None else found[layer]

    module = path.removesuffix("kernel")
    whole, a, b = (of_adapter(name) for name in (path, module + LORA_A, module + LORA_B))
    if whole is None and (a is None or b is None):
        return value
    rows = max(1, _BLOCK_BYTES // (4 * value[0].size))
    for first in range(0, len(value), rows):
        block = slice(first, first + rows)
        changed = (value if whole is None else whole)[block].astype(np.float32)
        if a is not None and b is not None:
            changed += (a[block] * adapter.lora.scale) @ b
        try:
            with np.errstate(over="raise"):
                value[block] = changed
        except FloatingPointError:
            raise ValueError(
                f"{path} is stored in {value.dtype}, and merged it is beyond it: leave {adapter.path} beside "
                "its base (--adapter)"
            ) from None
    return value
