"""Prompts of random ids, and what a decoder says after them without a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.tiny_model import tiny_model
from unitoken_jax.generate import decode


def random_prompts(lengths, seed=0) -> list[decode.Prompt]:
    """A prompt without images of each of `lengths` tokens."""
    rng = np.random.default_rng(seed)
    return [decode.Prompt(rng.integers(70, 390, n), np.full(n, -1, np.int32)) for n in lengths]


@jax.jit
def full_logits(params, tokens, length):
    """float32[V] after `length` of `tokens` int32[1, T], by one pass of the tiny model over the whole row."""
    used = jnp.arange(tokens.shape[1])[None] < length
    batch = {
        "tokens": tokens,
        "segments": used.astype(jnp.int32),
        "positions": jnp.where(used, jnp.arange(tokens.shape[1])[None], 0),
        "image_feature_index": jnp.full_like(tokens, -1),
        "crops": jnp.zeros((1, 1, 16, 16, 3), jnp.uint8),
    }
    return tiny_model().apply(params, batch)[0, length - 1]
