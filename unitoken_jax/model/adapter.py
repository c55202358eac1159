"""Adapter: SigLIP features -> decoder embeddings, Linear-GELU-Linear (paper section 3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from unitoken_jax.model.layers import Dense, Dtype, Normal
from unitoken_jax.model.sharding import shard


class Adapter(nn.Module):
    """[B, M, siglip width] -> [B, M, `width`] in `dtype`. The GELU is the exact one (erf)."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = Dense(self.width, ("embed", "mlp"), True, dtype=self.dtype, name="up")(features)
        x = shard(jax.nn.gelu(x, approximate=False), "batch", "patches", "mlp")
        # Starts at the scale of the token embeddings it is mixed with.
        return Dense(self.width, ("mlp", "embed"), True, Normal(0.02), self.dtype, name="down")(x)
