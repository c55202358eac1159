"""SigLIP vision tower: crops -> patch features (arXiv 2303.15343, as google/siglip-so400m-patch14-384).

Pre-LayerNorm transformer without class token; the published pooling head is not used by UniToken.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from unitoken_jax.config import SiglipConfig
from unitoken_jax.model.attention import attention
from unitoken_jax.model.layers import (
    Dense,
    Dtype,
    Embed,
    LayerNorm,
    Normal,
    Remat,
    scan_layers,
    to_unit,
)
from unitoken_jax.model.sharding import shard


class SiglipBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); every projection has a bias."""

    config: SiglipConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
        c = self.config
        D = x.shape[-1]

        def dense(name: str, features: int, *axes: str) -> Dense:
            inputs, outputs = axes
            xavier = Normal((2 / (features + (c.mlp if name == "down" else D))) ** 0.5)
            return Dense(features, (inputs, outputs), True, xavier, self.dtype, name=name)

        y = LayerNorm(c.norm_eps, self.dtype, name="attention_norm")(x)
        q, k, v = (
            shard(rearrange(dense(name, D, "embed", "heads")(y), "b p (n h) -> b p n h", n=c.heads), *_HEADS)
            for name in ("q", "k", "v")
        )
        x = x + dense("o", D, "heads", "embed")(rearrange(attention(q, k, v), "b p n h -> b p (n h)"))
        y = LayerNorm(c.norm_eps, self.dtype, name="mlp_norm")(x)
        y = jax.nn.gelu(dense("up", c.mlp, "embed", "mlp")(y), approximate=True)
        x = x + dense("down", D, "mlp", "embed")(y)
        return shard(x, "crops", "patches", "act_embed"), None


# Crops are split over all devices, also those that share rows: so each holds whole heads.
_HEADS = ("crops", "patches", None, "head_dim")


class Siglip(nn.Module):
    """uint8 or [-1, 1] float[M, S, S, 3] -> [M, P, D] in `dtype`, after the final LayerNorm.

    Patches run row by row; the S % patch_size pixels left over at the right and bottom are dropped, as a
    convolution without padding does. ValueError where S is not the config's image_size.
    """

    config: SiglipConfig
    dtype: Dtype = jnp.float32
    remat: Remat = "none"
    scan: bool = True

    @nn.compact
    def __call__(self, crops: jax.Array) -> jax.Array:
        c = self.config
        if crops.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f"SigLIP crops are {crops.shape[1:]}; expected {(c.image_size, c.image_size, 3)}: make them "
                "with the side the model's config.json gives as siglip.image_size"
            )
        side = c.grid * c.patch_size
        # Patches are cut while they are bytes; the embedding is then one matrix product.
        x = rearrange(
            crops[:, :side, :side],
            "m (gh ph) (gw pw) c -> m (gh gw) (ph pw c)",
            ph=c.patch_size,
            pw=c.patch_size,
        )
        x = to_unit(x, self.dtype)
        x = Dense(c.width, (None, "embed"), True, dtype=self.dtype, name="patch_embed")(x)
        # Patches of random weights are about 1 in every channel: their positions must not drown in that.
        positions = Embed(c.patches, c.width, ("patches", "embed"), self.dtype, 0.5, name="position_embed")
        x = x + positions.table()
        x = shard(x, "crops", "patches", "act_embed")
        layers = scan_layers(SiglipBlock, c.depth, self.remat, self.scan, in_axes=())
        x, _ = layers(c, self.dtype, name="layers")(x)
        return LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
