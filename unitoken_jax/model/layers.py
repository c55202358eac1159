"""What the networks share: Dense, norms, embedding, rotary positions, stacking of blocks.

Kernels are two-dimensional, [in, out], with the heads merged into one axis of N * H: that is how the
published files store them (transposed), every projection is one plain matrix product on each backend, and
a "heads" axis of N * H splits over the mesh's tensor axis as long as that divides N.

Parameters are float32; modules compute in their `dtype`, norms and softmax in float32.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from unitoken_jax.model.attention import CONTEXT, QKV
from unitoken_jax.model.quantize import QuantizedKernel
from unitoken_jax.model.sharding import constrain_last_axis, shard, unshard_fsdp, with_logical_axes

Dtype = jnp.dtype | type
Remat = Literal["none", "dots", "qkv", "full"]
# The name under which remat policies keep a `Dense`'s product: jax's own policies for products do not see
# those within a custom_vjp, as `matmul`'s are.
PRODUCT = "product"


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initializer: `mean` + `std` * N(0, 1). All of this package's are of this form, so that `model.init` can
    draw them on the host (compiling jax.random for every shape takes most of a minute on a CPU).
    """

    std: float = 0.0
    mean: float = 0.0

    # Flax asks for the shape whenever it traces a network; compiled, each is traced once.
    @functools.partial(jax.jit, static_argnums=(0, 2, 3))
    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        if self.std == 0.0:
            return jnp.full(shape, self.mean, dtype)
        return self.mean + self.std * jax.random.normal(key, shape, dtype)


ZEROS, ONES = Normal(), Normal(mean=1.0)


def to_unit(images: jax.Array, dtype: Dtype = jnp.float32) -> jax.Array:
    """uint8 0..255 -> `dtype` in [-1, 1]; floats are taken as already normalised."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 127.5 - 1.0
    return images.astype(dtype)


def to_pixels(images: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8: clipped, mapped to 0..255 and truncated, as the published code does."""
    return ((jnp.clip(images.astype(jnp.float32), -1, 1) + 1) / 2 * 255).astype(jnp.uint8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, axes: tuple[str | None, str | None]) -> jax.Array:
    """x [..., in] @ kernel [in, out] -> [..., out]; `axes` are the kernel's logical axis names.

    The kernel is gathered from the devices that share its storage just before it is used, in the forward and
    again in the backward pass, and its gradient goes straight back to where it is stored. That gradient is
    one plain product: JAX's own rule computes it transposed, from a transposed copy of the output's, and on a
    CPU a SwiGLU's step so takes 1.7x as long. Not differentiable in forward mode.
    """
    return x @ unshard_fsdp(kernel, *axes)


def _matmul_forward(x, kernel, axes):
    return matmul(x, kernel, axes), (x, kernel)


def _matmul_backward(axes, saved, cotangent):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    to_kernel = jax.lax.dot_general(x, cotangent, ((rows, rows), ((), ())))
    return cotangent @ unshard_fsdp(kernel, *axes).T, shard(to_kernel, *axes)


matmul.defvjp(_matmul_forward, _matmul_backward)


# Leaves beside a kernel [in, out] that a LoRA pair adapts: A [in, r], B [r, out], and two scalars.
LORA_A, LORA_B, LORA_SCALE, LORA_DROPOUT = "lora_a", "lora_b", "lora_scale", "lora_dropout"


class Dense(nn.Module):
    """x [..., in] @ kernel [in, out] (+ bias [out]); `axes` are the kernel's logical axis names.

    A frozen kernel may be a QuantizedKernel. Where a LoRA pair stands beside the kernel (`model/lora.py`),
    its product is added.
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    kernel_init: Normal | None = None  # None: 1 / sqrt(in)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = self.kernel_init or Normal(x.shape[-1] ** -0.5)
        kernel = self.param("kernel", with_logical_axes(init, *self.axes), (x.shape[-1], self.features))
        if isinstance(kernel, QuantizedKernel):
            y = kernel.product(x.astype(self.dtype), self.axes)
        else:
            y = checkpoint_name(matmul(x.astype(self.dtype), kernel.astype(self.dtype), self.axes), PRODUCT)
        if self.has_variable("params", LORA_A):
            y = y + self._low_rank_product(x.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", with_logical_axes(ZEROS, self.axes[1]), (self.features,))
            y = y + bias.astype(self.dtype)
        return y

    def _low_rank_product(self, x: jax.Array) -> jax.Array:
        """scale (x A) B, with dropout of x where there is a rate for it and an rng "dropout"."""
        names = (LORA_A, LORA_B, LORA_SCALE)
        a, b, scale = (jnp.asarray(self.get_variable("params", name)) for name in names)
        if self.has_variable("params", LORA_DROPOUT) and self.has_rng("dropout"):
            keep = 1 - self.get_variable("params", LORA_DROPOUT)
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
            x = jnp.where(kept, x / keep, 0).astype(self.dtype)
        low = checkpoint_name(matmul(x, a.astype(self.dtype), (self.axes[0], None)), PRODUCT)
        low = (low * scale).astype(self.dtype)
        return matmul(low, b.astype(self.dtype), (None, self.axes[1]))


class Embed(nn.Module):
    """Table [rows, width]: `__call__` looks int32[...] up -> [..., width], `table` gives it whole."""

    rows: int
    width: int
    axes: tuple[str | None, str | None]
    dtype: Dtype = jnp.float32
    std: float = 0.02  # of random values

    def setup(self):
        init = with_logical_axes(Normal(self.std), *self.axes)
        self.embedding = self.param("embedding", init, (self.rows, self.width))

    def table(self) -> jax.Array:
        return self.embedding.astype(self.dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.embedding
        if table.dtype.itemsize >= jnp.dtype(self.dtype).itemsize:
            table = self.table()  # narrower, it stays so: a loop around this would begin with a wide copy
        rows = jnp.take(table, ids, axis=0).astype(self.dtype)
        return constrain_last_axis(rows, self.axes[1])


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with weight and bias; statistics in float32."""

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", with_logical_axes(ONES, "act_embed"), (x.shape[-1],))
        bias = self.param("bias", with_logical_axes(ZEROS, "act_embed"), (x.shape[-1],))
        return (_standardise(x, self.eps) * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32."""

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", with_logical_axes(ONES, "act_embed"), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


class QKNorm(nn.Module):
    """Chameleon's QK-norm: LayerNorm over head_dim of [B, T, N, H], float32 inside, eps 1e-5.

    Weight and bias are [shards, H]: Chameleon trained one row on each model-parallel shard, so row i serves
    heads i * N / shards onwards.
    """

    shards: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads, head_dim = x.shape[-2:]
        if heads % self.shards:
            raise ValueError(f"qk_norm_shards {self.shards} does not divide {heads} heads")
        shape = (self.shards, head_dim)
        scale = self.param("scale", with_logical_axes(ONES, None, "head_dim"), shape)
        bias = self.param("bias", with_logical_axes(ZEROS, None, "head_dim"), shape)
        scale, bias = (jnp.repeat(row, heads // self.shards, axis=0) for row in (scale, bias))
        return (_standardise(x, 1e-5) * scale + bias).astype(self.dtype)


def _standardise(x: jax.Array, eps: float) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def rope_table(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine float32[B, T, H / 2] of int32[B, T] positions."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions on [B, T, N, H]: channel i turns with channel i + H / 2 (half-split), in float32."""
    cos, sin = (angles[:, :, None] for angles in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def scan_layers(block: type[nn.Module], depth: int, remat: Remat, scan: bool, in_axes, static_argnums=()):
    """Class of `depth` blocks in a row, their parameters stacked on a leading "layers" axis.

    `block.__call__(carry, *inputs) -> carry, out`; `in_axes` says for each input whether a block gets its
    slice (0) or all of it (nn.broadcast). `scan` False unrolls the loop, with the same parameters: slower
    to compile, and on a CPU faster to run. `remat` is what is computed again in the backward pass: "full"
    keeps each block's input alone, "qkv" also the attention's projections and output, "dots" all matrix
    products. `static_argnums` are Python values, counted from 1 = carry.
    """
    policies = {
        "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, CONTEXT),
        "qkv": jax.checkpoint_policies.save_only_these_names(QKV, CONTEXT),
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    if remat != "none":
        # Without a loop around it, XLA would merge the recomputation with the first computation.
        block = nn.remat(block, policy=policies[remat], prevent_cse=not scan, static_argnums=static_argnums)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        unroll=1 if scan else depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
