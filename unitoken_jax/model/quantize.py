"""Weights in 8 or 4 bits and a cache in 8: what decoding waits for is reading them, and a LoRA's frozen base
fits where it would not.

A kernel W [in, out] is kept as whole numbers and a scale for each output, or, in 4 bits, for each output and
GROUP inputs. Its product with x is one of whole numbers, too, which CPUs and TPUs do faster than convert: x
is split into a high and a low byte, so that it keeps 15 bits, and both go through one int8 product with
twice the rows. While reading weights is the limit, those rows cost nothing. On a GPU, 8-bit weights are
converted as they are read: its int8 products want them transposed, and XLA kept such a copy
(benchmarks/RESULTS.md).
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.model.sharding import unshard_fsdp

# Paths of the kernels that are quantized. Embeddings, lm_head, SigLIP and VQ-GAN stay as they are.
QUANTIZED_KERNELS = re.compile(r"^decoder/layers/.*/kernel$")
BITS = {"int8": 8, "int4": 4}
GROUP = 128  # inputs that share a scale in 4 bits
_MAX_WHOLE = 127 * 256  # the largest of the whole numbers that x becomes


@flax.struct.dataclass
class QuantizedKernel:
    """values int8 or int4 [..., in, out], scales float32[..., groups, out]; W ~ values * scales."""

    values: jax.Array
    scales: jax.Array

    def product(self, x: jax.Array, axes: tuple[str | None, str | None] = (None, None)) -> jax.Array:
        """x [..., in] @ W [in, out] -> [..., out] in x's dtype; `axes` are W's logical axis names. Its
        gradient is to x alone: W is frozen."""
        return _product(x, self.values, self.scales, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: jax.Array, values: jax.Array, scales: jax.Array, axes: tuple) -> jax.Array:
    groups, features = scales.shape
    # Groups first, x's side on the left: in another order XLA turns the weights around each time.
    rows = x.reshape(-1, groups, x.shape[-1] // groups).swapaxes(0, 1)
    kernel = values.reshape(groups, -1, features)
    product = _converting if groups == 1 and jax.default_backend() == "gpu" else _in_bytes
    y = (product(rows, kernel) * scales[:, None]).sum(0)
    return y.reshape(*x.shape[:-1], features).astype(x.dtype)


# In training, rows are many and reading W is not what takes the time: one product with W in x's dtype, made
# anew in either pass. The bytes of the rows, apart, would besides move between the devices that share them.


def _product_forward(x, values, scales, axes):
    return x @ _whole(values, scales, axes, x.dtype), (values, scales)


def _product_backward(axes, saved, cotangent):
    return cotangent @ _whole(*saved, axes, cotangent.dtype).T, None, None


_product.defvjp(_product_forward, _product_backward)


def _whole(values: jax.Array, scales: jax.Array, axes: tuple, dtype) -> jax.Array:
    """W [in, out] in `dtype`, gathered as bytes from the devices that share its storage."""
    grouped = unshard_fsdp(values, *axes).reshape(len(scales), -1, values.shape[-1])
    return (grouped.astype(dtype) * scales[:, None].astype(dtype)).reshape(values.shape)


def _in_bytes(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32[G, R, out] of rows [G, R, in] and a kernel of whole numbers [G, in, out].

    A row becomes whole numbers of 16 bits and a scale; their high and low bytes are rows of one int8 product.
    """
    rows = rows.astype(jnp.float32)
    step = jnp.maximum(jnp.max(jnp.abs(rows), axis=-1, keepdims=True), 1e-30) / _MAX_WHOLE
    whole = jnp.round(rows / step)
    high = jnp.floor((whole + 128) / 256)
    stacked_bytes = jnp.concatenate([high, whole - 256 * high], axis=1).astype(jnp.int8)
    high, low = jnp.split(
        _batched(stacked_bytes, kernel.astype(jnp.int8), jnp.int32).astype(jnp.float32), 2, axis=1
    )
    return (256 * high + low) * step


def _converting(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `_in_bytes`, as a product in the rows' dtype: on a GPU, XLA's Triton kernels convert what they
    read."""
    return _batched(rows, kernel.astype(rows.dtype), jnp.float32)


def _batched(rows, kernel, dtype) -> jax.Array:
    return jax.lax.dot_general(rows, kernel, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)


class QuantizedKV(NamedTuple):
    """A layer's keys or values in a cache: values int8[B, K, S, H], scales float32[B, K, S]."""

    values: jax.Array
    scales: jax.Array


def quantize_entries(x: jax.Array) -> QuantizedKV:
    """[..., H] -> int8 [..., H] with a scale for each vector."""
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127
    return QuantizedKV(jnp.round(x / scales[..., None]).astype(jnp.int8), scales)


def quantize_kernel(layers: Iterable[np.ndarray], bits: int) -> QuantizedKernel:
    """A stack of kernels [in, out], given one by one, with its arrays on the host. Errors as
    `quantize_layer`."""
    kernels = [quantize_layer(kernel, bits) for kernel in layers]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *kernels)


def quantize_layer(kernel: np.ndarray, bits: int) -> QuantizedKernel:
    """A kernel [in, out] in `bits` bits, with its arrays on the host.

    The largest magnitude of a scale's weights becomes 127 or 7. ValueError where 4 bits' groups do not divide
    the inputs.
    """
    (inputs, outputs), groups = kernel.shape, scale_groups(kernel.shape[0], bits)
    grouped = np.asarray(kernel, np.float32).reshape(groups, -1, outputs)
    largest = np.maximum(grouped.max(1), -grouped.min(1))
    scales = np.maximum(largest, 1e-30) / (2 ** (bits - 1) - 1)
    whole = grouped / scales[:, None]
    values = np.rint(whole, out=whole).reshape(inputs, outputs).astype(jnp.int4 if bits == 4 else np.int8)
    return QuantizedKernel(values, scales)  # not on a device yet


def abstract_kernel(shape: tuple[int, ...], bits: int) -> QuantizedKernel:
    """ShapeDtypeStructs of a stack of kernels [..., in, out] in `bits` bits. Errors as `quantize_layer`."""
    *stack, inputs, outputs = shape
    values = jax.ShapeDtypeStruct(shape, jnp.int4 if bits == 4 else jnp.int8)
    scales = jax.ShapeDtypeStruct((*stack, scale_groups(inputs, bits), outputs), jnp.float32)
    return QuantizedKernel(values, scales)  # type: ignore[arg-type] # shapes alone


def scale_groups(inputs: int, bits: int) -> int:
    """How many scales an output of a kernel with so many inputs has. ValueError where 4 bits' groups do not
    divide them."""
    if bits == 4 and inputs % GROUP:
        raise ValueError(f"int4 needs inputs in groups of {GROUP}, but a kernel has {inputs}: use int8")
    return inputs // GROUP if bits == 4 else 1


def pack_int4(values: np.ndarray) -> np.ndarray:
    """uint8[in / 2, out] of int4[in, out]: the first half of the rows in the low four bits, the second in
    the high ones."""
    low, high = np.split(values.astype(np.int8), 2)
    return (low & 15 | high << 4).view(np.uint8)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """int4[..., in, out] of `pack_int4`'s uint8[..., in / 2, out]."""
    signed = packed.view(np.int8)
    return np.concatenate([signed << 4 >> 4, signed >> 4], axis=-2).astype(jnp.int4)


def bits_of(name: str) -> int:
    """8 or 4; ValueError for an unknown name."""
    if name not in BITS:
        raise ValueError(f"quantize is {name!r}; expected {' or '.join(BITS)}")
    return BITS[name]
