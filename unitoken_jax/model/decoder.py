"""Chameleon's decoder (arXiv 2405.09818): RMSNorm, QK-norm, RoPE, grouped-query attention, SwiGLU.

The 7B model normalises each branch's input, the 34B model its output (config.norm).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from unitoken_jax.config import DecoderConfig
from unitoken_jax.model.attention import QKV, attention, cached_attention
from unitoken_jax.model.layers import (
    Dense,
    Dtype,
    Embed,
    Normal,
    QKNorm,
    Remat,
    RMSNorm,
    apply_rope,
    rope_table,
    scan_layers,
)
from unitoken_jax.model.quantize import QuantizedKV, quantize_entries
from unitoken_jax.model.sharding import shard

_INIT = Normal(0.02)


Entries = jax.Array | QuantizedKV  # a layer's keys or values in a cache


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far: [B, K, S, H] a layer, a token's slot is its position."""

    k: tuple[Entries, ...]
    v: tuple[Entries, ...]


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: Dtype = jnp.float32) -> Cache:
    """Empty cache for `batch` rows of up to `length` tokens; int8 has scales beside it."""
    shape = (batch, config.kv_heads, length, config.head_dim)

    def empty() -> Entries:
        entries = _placed(jnp.zeros(shape, dtype))
        if entries.dtype != jnp.int8:
            return entries
        return QuantizedKV(entries, _placed(jnp.zeros(shape[:-1])))

    return Cache(*(tuple(empty() for _ in range(config.depth)) for _ in range(2)))


def _placed(entries: jax.Array) -> jax.Array:
    return shard(entries, *("batch", "kv_heads", "seq", "head_dim")[: entries.ndim])


def _write(old: Entries, positions: jax.Array, new: jax.Array) -> Entries:
    """`old` [B, K, S, H] with `new` [B, T, K, H] in the slots `positions` int32[B, T]; those outside it are
    dropped."""
    if isinstance(old, QuantizedKV):
        codes, scales = quantize_entries(new)
        return QuantizedKV(_write_array(old[0], positions, codes), _write_array(old[1], positions, scales))
    return _write_array(old, positions, new)


def _write_array(old: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
    rows = jnp.arange(len(positions))[:, None]
    # Negative indices would count from the end.
    slots = jnp.where(positions < 0, old.shape[2], positions)
    return _placed(old.at[rows, :, slots].set(new.astype(old.dtype), mode="drop"))


def unstack_layers(params: dict, *, consume: bool = False) -> dict:
    """A Decoder's parameters with its layers as {"0": ..., "1": ...} in place of a stack; `extend` takes
    both.

    Stacks are copied, layers that stand apart already are not. `consume`: every stack is taken out of
    `params` before it is copied, so that no more than one of them is held twice; `params` has no layers
    afterwards.
    """
    if "0" in params["layers"]:
        return dict(params)
    stacks = traverse_util.flatten_dict(params["layers"])
    if consume:
        del params["layers"]
    layers: dict[str, dict] = {}
    while stacks:
        path, stack = stacks.popitem()
        for i, leaf in enumerate(_slices(stack)):
            layers.setdefault(str(i), {})[path] = leaf
    unstacked = {i: traverse_util.unflatten_dict(layer) for i, layer in layers.items()}
    return {**params, "layers": unstacked}


@jax.jit
def _slices(stack) -> list:
    depth = len(jax.tree.leaves(stack)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(depth)]


def stack_layers(params: Mapping, *, consume: bool = False) -> dict:
    """A Decoder's parameters with its layers in one stack: the inverse of `unstack_layers`. It copies them
    unless they are stacked already. `consume`: the layers are taken out of their dicts as they are stacked,
    so that no more than one stack is held twice."""
    if "0" not in params["layers"]:
        return dict(params)
    layers = [traverse_util.flatten_dict(params["layers"][str(i)]) for i in range(len(params["layers"]))]
    if consume:
        for layer in params["layers"].values():
            layer.clear()
    stacks = {
        path: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layer.pop(path) for layer in layers))
        for path in list(layers[0])
    }
    return {**params, "layers": traverse_util.unflatten_dict(stacks)}


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D] and (keys, values), over the T tokens and what came before them.

    In packed rows with `segments` int32[B, S] what came before is `before`, keys and values [B, S - T, K, H],
    and the result's are of all S tokens; in decoding it is a layer's `cache`, and the result's are that cache
    with the T tokens in it.
    """

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x, rope, segments, positions, before=None, cache=None):
        c = self.config
        D = x.shape[-1]

        def heads(name: str, number: int, axis: str) -> jax.Array:
            y = Dense(number * c.head_dim, ("embed", axis), False, _INIT, self.dtype, name=name)(x)
            if cache is not None:  # else TPUs lay the kernels out anew to suit what follows (libtpu 0.0.52)
                y = jax.lax.optimization_barrier(y)
            y = shard(rearrange(y, "b t (n h) -> b t n h", n=number), "batch", "seq", axis, "head_dim")
            return checkpoint_name(y, QKV)

        q = heads("q", c.heads, "heads")
        k = heads("k", c.kv_heads, "kv_heads")
        v = heads("v", c.kv_heads, "kv_heads")
        q = apply_rope(QKNorm(c.qk_norm_shards, self.dtype, name="q_norm")(q), rope)
        k = apply_rope(QKNorm(c.qk_norm_shards, self.dtype, name="k_norm")(k), rope)
        if cache is not None:
            keys_values = _write(cache[0], positions, k), _write(cache[1], positions, v)
            y = cached_attention(q, *keys_values, positions)
        else:
            keys_values = k, v
            if before is not None:
                keys_values = tuple(jnp.concatenate(both, axis=1) for both in zip(before, keys_values))
            y = attention(q, *keys_values, segments, self.kernel)
        y = rearrange(y, "b t n h -> b t (n h)")
        return Dense(D, ("heads", "embed"), False, _branch_init(c), self.dtype, name="o")(y), keys_values


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
    """One layer: `__call__` on packed rows, in a loop over layers; `extend` on tokens after a cache."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    kernel: str = "xla"
    frozen_prefix_length: int = 0

    def setup(self):
        c = self.config
        self.attention_norm = RMSNorm(c.norm_eps, self.dtype)
        self.mlp_norm = RMSNorm(c.norm_eps, self.dtype)
        self.attention = Attention(c, self.dtype, self.kernel)
        self.mlp = MLP(c, self.dtype)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(self, x, rope, segments, positions, deterministic: bool):
        """x [B, T, D] -> ([B, T, D], None), what a scan over layers expects.

        `rope` is `layers.rope_table`'s, `segments` and `positions` int32[B, T] are a Batch's. No gradient
        goes through the first `frozen_prefix_length` tokens of a row.
        """
        n = self.frozen_prefix_length
        if n == 0:
            return self._layer(x, rope, segments, positions, deterministic)[0], None
        # Two blocks of tokens, the second attending to both: the backward pass is of the second's size.
        first, second = jax.lax.stop_gradient(x[:, :n]), x[:, n:]
        rope_first, rope_second = tuple(x[:, :n] for x in rope), tuple(x[:, n:] for x in rope)
        first, keys_values = self._layer(first, rope_first, segments[:, :n], None, deterministic)
        second, _ = self._layer(second, rope_second, segments, None, deterministic, before=keys_values)
        return jnp.concatenate([first, second], axis=1), None

    def extend(self, x, rope, positions, cache: tuple[jax.Array, jax.Array]):
        """x [B, T, D] at `positions` int32[B, T] -> ([B, T, D], cache with their keys and values)."""
        return self._layer(x, rope, None, positions, True, cache=cache)

    def _layer(self, x, rope, segments, positions, deterministic, **earlier):
        before = self.config.norm == "pre"

        def add(x: jax.Array, y: jax.Array, norm: RMSNorm) -> jax.Array:
            y = self.dropout(y if before else norm(y), deterministic=deterministic)
            return shard(x + y, "batch", "seq", "act_embed")

        y = self.attention_norm(x) if before else x
        y, keys_values = self.attention(y, rope, segments, positions, **earlier)
        x = add(x, y, self.attention_norm)
        y = self.mlp(self.mlp_norm(x) if before else x)
        return add(x, y, self.mlp_norm), keys_values


class Decoder(nn.Module):
    """Embeddings -> hidden states -> logits. Parameters: embed, layers (stacked), norm, lm_head.

    `kernel` is `attention`'s; `frozen_prefix_length` says how many tokens at the start of every row depend
    on nothing that is trained, so that no gradient need go through them.
    """

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    remat: Remat = "none"
    scan: bool = True
    kernel: str = "xla"
    frozen_prefix_length: int = 0

    def setup(self):
        c = self.config
        layers = scan_layers(
            DecoderBlock,
            c.depth,
            self.remat,
            self.scan,
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            static_argnums=(5,),
        )
        self.embed = Embed(c.vocab_size, c.width, ("vocab", "embed"), self.dtype)
        self.layers = layers(c, self.dtype, self.kernel, self.frozen_prefix_length)
        self.norm = RMSNorm(c.norm_eps, self.dtype)
        self.lm_head = Dense(c.vocab_size, ("embed", "vocab"), False, _INIT, self.dtype)

    def __call__(self, x, segments, positions, deterministic: bool = True) -> jax.Array:
        """Embeddings [B, T, D] of packed rows -> hidden [B, T, D] after the final norm.

        `segments`, `positions` int32[B, T] as in a Batch. Dropout needs the rng "dropout". Where the layers
        are apart (`unstack_layers`) they run one after the other, without dropout: ValueError where
        `deterministic` is False.
        """
        rope, x = self._start(x, positions)
        params = self.layers.variables.get("params", {})
        if "0" not in params:
            x, _ = self.layers(x, rope, segments, positions, deterministic)
            return self.norm(x)
        if not deterministic:
            raise ValueError(
                "the decoder's layers are apart, as for decoding: train them stacked (stack_layers)"
            )
        block = DecoderBlock(self.config, self.dtype, self.kernel, self.frozen_prefix_length, parent=None)
        for i in range(self.config.depth):
            x, _ = block.apply({"params": params[str(i)]}, x, rope, segments, positions, True)
        return self.norm(x)

    def extend(self, x, positions, cache: Cache) -> tuple[jax.Array, Cache]:
        """Embeddings [B, T, D] at `positions` int32[B, T] -> hidden [B, T, D], cache with them in it.

        Layer by layer, without a loop: from a loop over a stacked cache, each layer's part would be copied
        out and back.
        """
        rope, x = self._start(x, positions)
        block = DecoderBlock(self.config, self.dtype, parent=None)
        extend: Any = jax.jit(functools.partial(block.apply, method="extend"), inline=True)  # traced once
        params: Any = self.layers.variables["params"]
        written = []
        for i, layer_cache in enumerate(zip(*cache)):
            layer = params[str(i)] if "0" in params else jax.tree.map(lambda leaf, i=i: leaf[i], params)
            x, new_cache = extend({"params": layer}, x, rope, positions, layer_cache)
            written.append(new_cache)
        return self.norm(x), Cache(*map(tuple, zip(*written)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32[..., V]."""
        return self.lm_head(hidden).astype(jnp.float32)

    def _start(self, x, positions):
        rope = rope_table(positions, self.config.head_dim, self.config.rope_theta)
        return rope, shard(x.astype(self.dtype), "batch", "seq", "act_embed")
