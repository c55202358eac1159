"""The pieces the networks share: Dense, norms, embedding, rotary positions, attention, stacking of blocks.

Kernels are two-dimensional, [in, out], with the heads merged into one axis of N * H: that is how the
published files store them (transposed), every projection is one plain matrix product on each backend, and
a "heads" axis of N * H splits over the mesh's tensor axis as long as that divides N.

Parameters are float32; modules compute in their `dtype`, norms and softmax in float32.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from unitoken_jax.sharding import logical, shard

Dtype = jnp.dtype | type
Remat = Literal["none", "dots", "full"]

_MASKED = -1e30  # finite, so that a row that sees nothing is uniform instead of NaN


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initializer: `mean` + `std` * N(0, 1). All of this package's are of this form, so that `model.init` can
    draw them on the host (compiling jax.random for every shape takes most of a minute on a CPU).
    """

    std: float = 0.0
    mean: float = 0.0

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return self.mean + self.std * jax.random.normal(key, shape, dtype)


ZEROS, ONES = Normal(), Normal(mean=1.0)


def to_unit(pictures: jax.Array, dtype: Dtype = jnp.float32) -> jax.Array:
    """uint8 0..255 -> `dtype` in [-1, 1]; floats are taken as already normalised."""
    if pictures.dtype == jnp.uint8:
        pictures = pictures.astype(jnp.float32) / 127.5 - 1.0
    return pictures.astype(dtype)


def to_pixels(pictures: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8: clipped, mapped to 0..255 and truncated, as the published code does."""
    return ((jnp.clip(pictures.astype(jnp.float32), -1, 1) + 1) / 2 * 255).astype(jnp.uint8)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] @ kernel [in, out] -> [..., out], with the kernel's gradient as one plain product.

    JAX's own rule computes that gradient transposed, from a transposed copy of the output's: on a CPU a
    SwiGLU's step so takes 1.7x as long. Not differentiable in forward mode.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(saved, slope):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return slope @ kernel.T, jax.lax.dot_general(x, slope, ((rows, rows), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
    """x [..., in] @ kernel [in, out] (+ bias [out]); `axes` are the kernel's logical axis names."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    init: Normal | None = None  # None: 1 / sqrt(in)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = self.init or Normal(x.shape[-1] ** -0.5)
        kernel = self.param("kernel", logical(init, *self.axes), (x.shape[-1], self.features))
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", logical(ZEROS, self.axes[1]), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class Embed(nn.Module):
    """Table [rows, width]: `__call__` looks int32[...] up -> [..., width], `table` gives it whole."""

    rows: int
    width: int
    axes: tuple[str | None, str | None]
    dtype: Dtype = jnp.float32
    std: float = 0.02  # of random values

    def setup(self):
        init = logical(Normal(self.std), *self.axes)
        self.embedding = self.param("embedding", init, (self.rows, self.width))

    def table(self) -> jax.Array:
        return self.embedding.astype(self.dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # Its width gathered first: rows looked up of a split width would be made whole for all devices' rows.
        return jnp.take(shard(self.table(), self.axes[0], None), ids, axis=0)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with weight and bias; statistics in float32."""

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(ONES, "act_embed"), (x.shape[-1],))
        bias = self.param("bias", logical(ZEROS, "act_embed"), (x.shape[-1],))
        return (_standardise(x, self.eps) * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32."""

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(ONES, "act_embed"), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


class HeadNorm(nn.Module):
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
        scale = self.param("scale", logical(ONES, None, "head_dim"), shape)
        bias = self.param("bias", logical(ZEROS, None, "head_dim"), shape)
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


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions on [B, T, N, H]: channel i turns with channel i + H / 2 (half-split), in float32."""
    cos, sin = (part[:, :, None] for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None = None, backend: str = "xla"
) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    q [B, T, N, H]; k, v [B, S, K, H], query head n reading key head n // (N / K). `segments` int32[B, T]:
    packed rows; token t sees s <= t of its own segment (S = T). None: everyone sees everyone.
    Returns [B, T, N, H] in v's dtype.
    """
    return BACKENDS[backend](q, k, v, segments)


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array) -> jax.Array:
    """The same over a cache: k, v [B, K, S, H]; the token at `positions` int32[B, T] sees slots s <= its own.

    Heads come before slots so that a matrix product reads the cache as it lies, without a copy.
    """
    seen = jnp.arange(k.shape[2])

    def some(q, positions):
        return _weighted(q, k, v, seen <= positions[:, :, None], "bksh")

    return _in_chunks(some, k.shape[2], q, positions)


def _xla_attention(q, k, v, segments):
    T, S = q.shape[1], k.shape[1]
    if segments is None:
        return _in_chunks(lambda q: _weighted(q, k, v, None, "bskh"), S, q)
    places = jnp.arange(S)

    def some(q, own, place):
        visible = (own[:, :, None] == segments[:, None]) & (places <= place[:, :, None])
        return _weighted(q, k, v, visible, "bskh")

    return _in_chunks(some, S, q, segments, jnp.broadcast_to(jnp.arange(T), segments.shape))


def _weighted(q, k, v, visible, axes: str) -> jax.Array:
    """[B, T, N, H] of q [B, T, N, H] and k, v of `axes`; `visible` bool[B, T, S]: may query t see key s."""
    B, T, N, H = q.shape
    K = k.shape[axes.index("k")]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum(f"btkgh,{axes}->bkgts", q, k, preferred_element_type=jnp.float32) * H**-0.5
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(f"bkgts,{axes}->btkgh", weights, v).reshape(B, T, N, H)


def _in_chunks(attend, S: int, *queries: jax.Array) -> jax.Array:
    """`attend(*queries)`, arrays [B, T, ...], some queries at a time where T x S scores would fill memory."""
    B, T = queries[0].shape[:2]
    if T * S <= SCORES:
        return attend(*queries)
    number = -(-T * S // SCORES)
    each = -(-T // number)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, number * each - T)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, number, each, *x.shape[2:]), 1, 0)

    # Without remat the backward pass would keep every chunk's scores, which is what this avoids.
    y = jax.lax.map(lambda one: jax.checkpoint(attend)(*one), tuple(map(chunks, queries)))
    return jnp.moveaxis(y, 0, 1).reshape(B, number * each, *y.shape[3:])[:, :T]


SCORES = 2**22  # of one head and row at one time: 16 MiB of float32

# Kernels of one backend (splash, cuDNN) join here; all take (q, k, v, segments).
BACKENDS = {"xla": _xla_attention}


def stacked(block: type[nn.Module], depth: int, remat: Remat, scan: bool, in_axes, static_argnums=()):
    """Class of `depth` blocks in a row, their parameters stacked on a leading "layers" axis.

    `block.__call__(carry, *inputs) -> carry, out`; `in_axes` says for each input whether a block gets its
    slice (0) or all of it (nn.broadcast). `scan` False unrolls the loop, with the same parameters: slower
    to compile, and on a CPU faster to run. remat "dots" keeps matrix products for the backward pass,
    "full" only each block's input. `static_argnums` are Python values, counted from 1 = carry.
    """
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
