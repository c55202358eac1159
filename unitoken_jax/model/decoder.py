"""Chameleon's decoder (arXiv 2405.09818): RMSNorm, QK-norm, RoPE, grouped-query attention, SwiGLU.

The 7B model normalises each branch's input, the 34B model its output (config.norm).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from unitoken_jax.config import DecoderConfig
from unitoken_jax.model.layers import (
    Dense,
    Dtype,
    Embed,
    HeadNorm,
    Normal,
    Remat,
    RMSNorm,
    attention,
    cached_attention,
    rope_table,
    rotate,
    stacked,
)
from unitoken_jax.sharding import shard

_INIT = Normal(0.02)


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far: [B, K, S, H] a layer, a token's slot is its position."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: Dtype = jnp.float32) -> Cache:
    """Empty cache for `batch` rows of up to `length` tokens."""
    shape = (batch, config.kv_heads, length, config.head_dim)

    def empty() -> tuple[jax.Array, ...]:
        return tuple(shard(jnp.zeros(shape, dtype), *_CACHE_AXES) for _ in range(config.depth))

    return Cache(empty(), empty())


_CACHE_AXES = ("batch", "kv_heads", "seq", "head_dim")


def _write(old: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
    """Puts [B, T, K, H] into their slots of [B, K, S, H]; positions outside are dropped."""
    rows = jnp.arange(len(positions))[:, None]
    # Negative indices would count from the end.
    slots = jnp.where(positions < 0, old.shape[2], positions)
    return shard(old.at[rows, :, slots].set(new.astype(old.dtype), mode="drop"), *_CACHE_AXES)


def unstacked(params: Mapping) -> dict:
    """A Decoder's parameters, "layers" being {"0": ..., "1": ...} instead of a stack; `extend` takes both."""
    depth = len(params["layers"]["mlp_norm"]["scale"])
    layers = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(depth)}
    return {**params, "layers": layers}


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D], cache: over the row's own segments, or over `cache` (k, v) if there is one."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, rope, segments, positions, cache: tuple[jax.Array, jax.Array] | None):
        c = self.config
        B, T, D = x.shape

        def heads(name: str, number: int, axis: str) -> jax.Array:
            y = Dense(number * c.head_dim, ("embed", axis), False, _INIT, self.dtype, name=name)(x)
            return shard(y.reshape(B, T, number, c.head_dim), "batch", "seq", axis, "head_dim")

        q = heads("q", c.heads, "heads")
        k = heads("k", c.kv_heads, "kv_heads")
        v = heads("v", c.kv_heads, "kv_heads")
        q = rotate(HeadNorm(c.qk_norm_shards, self.dtype, name="q_norm")(q), rope)
        k = rotate(HeadNorm(c.qk_norm_shards, self.dtype, name="k_norm")(k), rope)
        if cache is None:
            y = attention(q, k, v, segments=segments)
        else:
            cache = _write(cache[0], positions, k), _write(cache[1], positions, v)
            y = cached_attention(q, *(part.astype(self.dtype) for part in cache), positions)
        y = y.reshape(B, T, D)
        return Dense(D, ("heads", "embed"), False, _branch_init(c), self.dtype, name="o")(y), cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate, up = (
            Dense(c.mlp, ("embed", "mlp"), False, _INIT, self.dtype, name=name)(x) for name in ("gate", "up")
        )
        y = shard(jax.nn.silu(gate) * up, "batch", "seq", "mlp")
        return Dense(c.width, ("mlp", "embed"), False, _branch_init(c), self.dtype, name="down")(y)


def _branch_init(config: DecoderConfig) -> Normal:
    """2 L branches add up on the residual stream; so scaled, its size at the start does not grow with L."""
    return Normal(0.02 / math.sqrt(2 * config.depth))


class DecoderBlock(nn.Module):
    """One layer. Carries (x [B, T, D], cache or None)."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry, rope, segments, positions, deterministic: bool):
        c = self.config
        x, cache = carry
        attention_norm = RMSNorm(c.norm_eps, self.dtype, name="attention_norm")
        mlp_norm = RMSNorm(c.norm_eps, self.dtype, name="mlp_norm")
        before = c.norm == "pre"

        def add(x: jax.Array, y: jax.Array, norm: RMSNorm) -> jax.Array:
            y = y if before else norm(y)
            y = nn.Dropout(c.dropout)(y, deterministic=deterministic)
            return shard(x + y, "batch", "seq", "act_embed")

        y = attention_norm(x) if before else x
        y, cache = Attention(c, self.dtype, name="attention")(y, rope, segments, positions, cache)
        x = add(x, y, attention_norm)
        y = MLP(c, self.dtype, name="mlp")(mlp_norm(x) if before else x)
        return (add(x, y, mlp_norm), cache), None


class Decoder(nn.Module):
    """Embeddings -> hidden states -> logits. Parameters: embed, layers (stacked), norm, lm_head."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    remat: Remat = "none"
    scan: bool = True

    def setup(self):
        c = self.config
        layers = stacked(
            DecoderBlock,
            c.depth,
            self.remat,
            self.scan,
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            static_argnums=(5,),
        )
        self.embed = Embed(c.vocab_size, c.width, ("vocab", "embed"), self.dtype)
        self.layers = layers(c, self.dtype)
        self.norm = RMSNorm(c.norm_eps, self.dtype)
        self.lm_head = Dense(c.vocab_size, ("embed", "vocab"), False, _INIT, self.dtype)

    def __call__(self, x, segments, positions, deterministic: bool = True) -> jax.Array:
        """Embeddings [B, T, D] of packed rows -> hidden [B, T, D] after the final norm.

        `segments`, `positions` int32[B, T] as in a Batch. Dropout needs the rng "dropout".
        """
        rope, x = self._start(x, positions)
        (x, _), _ = self.layers((x, None), rope, segments, positions, deterministic)
        return self.norm(x)

    def extend(self, x, positions, cache: Cache) -> tuple[jax.Array, Cache]:
        """Embeddings [B, T, D] at `positions` int32[B, T] -> hidden [B, T, D], cache with them in it.

        Layer by layer, without a loop: from a loop over a stacked cache, each layer's part would be copied
        out and back.
        """
        rope, x = self._start(x, positions)
        block = DecoderBlock(self.config, self.dtype, parent=None)
        params, written = self.layers.variables["params"], []
        for i, part in enumerate(zip(*cache)):
            own = params[str(i)] if "0" in params else jax.tree.map(lambda leaf, i=i: leaf[i], params)
            (x, part), _ = block.apply({"params": own}, (x, part), rope, None, positions, True)
            written.append(part)
        return self.norm(x), Cache(*map(tuple, zip(*written)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32[..., V]."""
        return self.lm_head(hidden).astype(jnp.float32)

    def _start(self, x, positions):
        rope = rope_table(positions, self.config.head_dim, self.config.rope_theta)
        return rope, shard(x.astype(self.dtype), "batch", "seq", "act_embed")
