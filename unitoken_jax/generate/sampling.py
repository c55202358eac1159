"""Logits -> one token a row: guidance, top-k, temperature (the published order), with a key a sample.

A sample's randomness comes from (seed, its prompt, its number, the token's offset) alone, so it is the same
in whatever row of the batch it is and whatever the batch's size. Numbers that users vary (`top_k`,
`temperature`, `guidance`) are traced, so changing them compiles nothing.
"""

import math

import jax
import jax.numpy as jnp


def sample_keys(seed: int, numbers) -> jax.Array:
    """One key a sample: key[B] for samples `numbers` int[B] of `seed`."""
    # Threefry by name: under vmap, the keys of jax's "rbg" generators draw from one shared stream.
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.asarray(numbers, jnp.uint32))


@jax.jit
def stream_keys(seeds, streams) -> jax.Array:
    """One key a sample: key[B] of its seed in `seeds` uint32[B] and its stream in `streams` uint32[B, 2] =
    (checksum of its prompt, its number).

    The checksum keeps prompts apart: one seed must not give all of them the same noise.
    """
    keys = jax.vmap(lambda seed, checksum: sample_keys(seed, checksum[None])[0])(seeds, streams[:, 0])
    return jax.vmap(jax.random.fold_in)(keys, streams[:, 1])


def position_keys(keys: jax.Array, offsets) -> jax.Array:
    """The keys key[B, W] of the tokens at `offsets` int32[B, W] after the prompts of samples with key[B]."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, offsets)


def apply_cfg(logits: jax.Array, guidance) -> jax.Array:
    """Classifier-free guidance: [2B, ..., V] (conditional rows, then unconditional) -> [B, ..., V].

    `guidance` of all rows, or [B] of each; a row's guidance of 1 is then exactly none.
    """
    conditional, unconditional = jnp.split(logits, 2)
    rows = jnp.reshape(guidance, (-1, *[1] * (logits.ndim - 1)))
    guided = unconditional + rows * (conditional - unconditional)
    return guided if jnp.ndim(guidance) == 0 else jnp.where(rows == 1, conditional, guided)


def sample(logits: jax.Array, keys: jax.Array, top_k, temperature) -> jax.Array:
    """One of each row's `top_k` best tokens, at `temperature`: float32[B, V], key[B] -> int32[B]. Both are of
    all rows, or [B] of each.

    Exactly `top_k` tokens take part, of equal ones those with the lower ids; `top_k` 1 is therefore argmax.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], logits.dtype))(keys)
    if jnp.ndim(temperature):
        temperature = temperature[:, None]
    scores = jnp.where(top_k_mask(logits, top_k), logits / temperature + noise, -jnp.inf)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def top_k_mask(logits: jax.Array, top_k) -> jax.Array:
    """bool[B, V]: each row's `top_k` (traced, of all rows or [B]) largest of float32[B, V]; of equal ones the
    first.

    Finds the smallest one by bisection over the 2^32 float32 values: a sort of the row takes thirty times as
    long on a CPU, and `lax.top_k` would compile anew for every k.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32) + 0.0, jnp.int32)  # -0.0 + 0.0 is 0.0
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as integers, in the floats' order

    def halve(_, bounds):
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        enough = jnp.sum(order >= middle[:, None], axis=-1) >= top_k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    limits = jnp.iinfo(jnp.int32)
    bounds = (jnp.full(len(order), limit, jnp.int32) for limit in (limits.min, limits.max))
    smallest = jax.lax.fori_loop(0, 32, halve, tuple(bounds))[0][:, None]
    above, equal = order > smallest, order == smallest
    room = (top_k - jnp.sum(above, axis=-1))[:, None]
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))


def check_sampling(
    top_k: int, temperature: float, guidance: float = 1.0, choices: int | None = None
) -> tuple[int, float, float]:
    """The settings as plain numbers for `sample`: (top_k, temperature, guidance).

    Temperature 0 means greedy, which is top-k 1. `choices`: how many tokens there are to choose from.
    Raises ValueError for what means nothing.
    """
    if isinstance(top_k, bool) or int(top_k) != top_k or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}; expected a whole number of at least 1 (1 is greedy)")
    if choices is not None and top_k > choices:
        raise ValueError(
            f"top_k is {top_k}; there are only {choices} tokens to choose from ({choices} is all)"
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature!r}; expected 0 (greedy) or a positive number")
    if not (math.isfinite(guidance) and guidance > 0):
        raise ValueError(f"guidance is {guidance!r}; expected a positive number (1 is no guidance)")
    if temperature == 0:
        return 1, 1.0, float(guidance)
    return int(top_k), float(temperature), float(guidance)
