"""A model directory -> one whose decoder's kernels are stored in 8 or 4 bits."""

import os

import numpy as np

from unitoken_jax.checkpoint.adapter import fingerprint
from unitoken_jax.checkpoint.model_directory import QUANTIZED_FORMAT, open_unquantized
from unitoken_jax.checkpoint.param_store import SCALES, VALUES, quantized_arrays
from unitoken_jax.checkpoint.rewrite import Rewrite, check_rewrite, rewrite_model, unchanged_array
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
    check_rewrite(model, out)
    model, out = absolute(model), absolute(out)
    opened = open_unquantized(model, "quantizing")
    stored = opened.params

    def convert(path: str, layer: int | None) -> dict[str, np.ndarray]:
        value = stored.read(path, layer)
        if not QUANTIZED_KERNELS.match(path):
            return {path: value}
        kernel = quantize_layer(value, bits)
        values = np.asarray(kernel.values)
        packed = pack_int4(values) if bits == 4 else values
        return {path + VALUES: packed, path + SCALES: np.asarray(kernel.scales)}

    arrays = {
        path: quantized_arrays(path, tuple(leaf.shape), bits)
        if QUANTIZED_KERNELS.match(path)
        else unchanged_array(stored, path)
        for path, leaf in stored.shapes.items()
    }
    manifest = {key: value for key, value in opened.manifest.items() if key not in ("created", "versions")}
    manifest |= {"format": QUANTIZED_FORMAT, "quantization": f"int{bits}", "quantized_from": model.name}
    manifest |= {"base_fingerprint": fingerprint(model)}  # an adapter of the model fits this one too
    purpose = {"model": str(model), "manifest": opened.manifest, "bits": bits}
    threads = os.cpu_count() or 1
    size = rewrite_model(opened, out, Rewrite(arrays, convert, manifest, purpose, threads))
    return [f"{out}: the decoder in int{bits}, {size / 1e9:.2f} GB"]
