"""Chameleon's image tokenizer, a VQ-GAN (arXiv 2012.09841): pixels <-> codes, one code a 16 x 16 px square.

Encoder, codebook and decoder, all trainable with a straight-through gradient. Images are NHWC.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from unitoken_jax.config import VQConfig
from unitoken_jax.model.attention import attention
from unitoken_jax.model.layers import ONES, ZEROS, Dtype, Normal, to_unit
from unitoken_jax.model.sharding import shard, with_logical_axes

_SAME = ((1, 1), (1, 1))


class Conv(nn.Module):
    """[B, h, w, in] -> [B, h', w', out], kernel [size, size, in, out] and bias."""

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = _SAME
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Measured on two CPU cores, 64 x 24 x 24 x 16: shifted copies times one matrix take 4x as long.
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = Normal(math.prod(shape[:3]) ** -0.5)
        kernel = self.param("kernel", with_logical_axes(init, None, None, "channels", "channels"), shape)
        bias = self.param("bias", with_logical_axes(ZEROS, "channels"), (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return shard(y + bias.astype(self.dtype), "batch", None, None, "channels")


def _conv1(features: int, dtype: Dtype, name: str | None = None) -> Conv:
    return Conv(features, 1, 1, ((0, 0), (0, 0)), dtype, name=name)


class GroupNorm(nn.Module):
    """GroupNorm of [B, h, w, c], eps 1e-6, in float32. Zero groups: scale and bias alone."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if self.groups and channels % self.groups:
            raise ValueError(f"vq.norm_groups {self.groups} does not divide {channels} channels")
        scale = self.param("scale", with_logical_axes(ONES, "channels"), (channels,))
        bias = self.param("bias", with_logical_axes(ZEROS, "channels"), (channels,))

        def group_mean(x: jax.Array) -> jax.Array:
            """Mean over pixels first, then over each group: [B, 1, 1, c]."""
            means = jnp.mean(x, axis=(1, 2)).reshape(len(x), self.groups, -1).mean(axis=-1)
            return jnp.repeat(means, channels // self.groups, axis=-1)[:, None, None]

        x = x.astype(jnp.float32)
        if self.groups:
            x = x - group_mean(x)
            x = x * jax.lax.rsqrt(group_mean(jnp.square(x)) + 1e-6)
        return (x * scale + bias).astype(self.dtype)


class ResBlock(nn.Module):
    """norm, swish, conv, twice; a 1 x 1 convolution on the shortcut where the channels change."""

    features: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.silu(GroupNorm(self.groups, self.dtype, name="norm1")(x))
        y = Conv(self.features, dtype=self.dtype, name="conv1")(y)
        y = jax.nn.silu(GroupNorm(self.groups, self.dtype, name="norm2")(y))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = _conv1(self.features, self.dtype, "shortcut")(x)
        return x + y


class PixelAttention(nn.Module):
    """Single-head attention among all pixels of a feature map."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, h, w, c = x.shape
        y = GroupNorm(self.groups, self.dtype, name="norm")(x)
        q, k, v = (_conv1(c, self.dtype, name)(y).reshape(B, h * w, 1, c) for name in ("q", "k", "v"))
        y = attention(q, k, v).reshape(B, h, w, c)
        return x + _conv1(c, self.dtype, "o")(y)


class Middle(nn.Module):
    """The blocks at the lowest resolution: ResBlock, attention, ResBlock."""

    config: VQConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = ResBlock(x.shape[-1], c.norm_groups, self.dtype, name="block_1")(x)
        if c.mid_attention:
            x = PixelAttention(c.norm_groups, self.dtype, name="attention")(x)
        return ResBlock(x.shape[-1], c.norm_groups, self.dtype, name="block_2")(x)


class Level(nn.Module):
    """`blocks` ResBlocks of `features` channels at one resolution, each followed by attention if `attend`."""

    config: VQConfig
    features: int
    blocks: int
    attend: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for j in range(self.blocks):
            x = ResBlock(self.features, self.config.norm_groups, self.dtype, name=f"block_{j}")(x)
            if self.attend:
                x = PixelAttention(self.config.norm_groups, self.dtype, name=f"attention_{j}")(x)
        return x


def _attends(config: VQConfig, level: int) -> bool:
    return config.resolution // 2**level in config.attention_resolutions


class Encoder(nn.Module):
    """[B, H, W, 3] in [-1, 1] -> [B, h, w, latent_channels]."""

    config: VQConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = Conv(c.base_channels, dtype=self.dtype, name="conv_in")(x)
        for i, multiplier in enumerate(c.channel_multipliers):
            features = c.base_channels * multiplier
            level = Level(c, features, c.res_blocks, _attends(c, i), self.dtype, name=f"down_{i}")
            x = level(x)
            if i + 1 < len(c.channel_multipliers):
                # Pads one row and column at the right and bottom only, as the published weights expect.
                halve = Conv(features, 3, 2, ((0, 1), (0, 1)), self.dtype, name=f"downsample_{i}")
                x = halve(x)
        x = Middle(c, self.dtype, name="mid")(x)
        x = jax.nn.silu(GroupNorm(c.norm_groups, self.dtype, name="norm_out")(x))
        return Conv(c.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """[B, h, w, latent_channels] -> [B, H, W, 3]. Levels are numbered as in the encoder: 0 is full size."""

    config: VQConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = Conv(c.base_channels * c.channel_multipliers[-1], dtype=self.dtype, name="conv_in")(x)
        x = Middle(c, self.dtype, name="mid")(x)
        for i, multiplier in reversed(tuple(enumerate(c.channel_multipliers))):
            features = c.base_channels * multiplier
            level = Level(c, features, c.res_blocks + 1, _attends(c, i), self.dtype, name=f"up_{i}")
            x = level(x)
            if i > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv(features, dtype=self.dtype, name=f"upsample_{i}")(x)
        x = jax.nn.silu(GroupNorm(c.norm_groups, self.dtype, name="norm_out")(x))
        return Conv(3, dtype=self.dtype, name="conv_out")(x)


class VQModel(nn.Module):
    """The image tokenizer: pixels -> latents -> codes, and codes -> pixels.

    Parameters: encoder, decoder, quant_conv, post_quant_conv, codebook float32[codes, E]. `tokenize` and
    `decode` are what using it takes; `__call__` is what training it takes.
    """

    config: VQConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.quant_conv = _conv1(c.embed_dim, self.dtype)
        self.post_quant_conv = _conv1(c.latent_channels, self.dtype)
        init = with_logical_axes(Normal(1.0 / c.codes), None, "channels")
        self.codebook = self.param("codebook", init, (c.codes, c.embed_dim))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Images as for `encode` -> (reconstruction [B, H, W, 3], losses, codes int32[B, h, w]).

        The gradient passes the quantizer as if it were the identity. Losses, float32 scalars: `codebook`
        (moves codes to latents), `commitment` (latents to codes, config.commitment already applied).
        """
        latents = self.encode(images).astype(jnp.float32)
        quantized, codes = self.quantize(latents)
        losses = {
            "codebook": jnp.mean(jnp.square(quantized - jax.lax.stop_gradient(latents))),
            "commitment": self.config.commitment
            * jnp.mean(jnp.square(jax.lax.stop_gradient(quantized) - latents)),
        }
        straight_through = latents + jax.lax.stop_gradient(quantized - latents)
        return self.decode(straight_through), losses, codes

    def encode(self, images: jax.Array) -> jax.Array:
        """Latents [B, h, w, E] of images uint8[B, H, W, 3] (normalised here), or of floats in [-1, 1].

        ValueError where H or W is not a multiple of the stride.
        """
        height, width = images.shape[1:3]
        stride = self.config.stride
        if height % stride or width % stride:
            raise ValueError(f"image is {height} x {width} px; the tokenizer needs multiples of {stride}")
        return self.quant_conv(self.encoder(to_unit(images, self.dtype)))

    def quantize(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(vectors float32[B, h, w, E], codes int32[B, h, w]) nearest to latents [B, h, w, E]."""
        # Full precision on every backend: a rounded product picks other codes.
        product = jnp.einsum(
            "bhwe,ne->bhwn", latents.astype(jnp.float32), self.codebook, precision=jax.lax.Precision.HIGHEST
        )
        distances = (
            jnp.sum(jnp.square(self.codebook), axis=-1) - 2.0 * product
        )  # without |latent|^2, the same for all
        codes = jnp.argmin(distances, axis=-1).astype(jnp.int32)
        return jnp.take(self.codebook, codes, axis=0), codes

    def tokenize(self, images: jax.Array) -> jax.Array:
        """Codes int32[B, h, w] of images uint8[B, H, W, 3], or of what else `encode` takes."""
        return self.quantize(self.encode(images))[1]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images [B, H, W, 3], about -1 to 1, of codes int[B, h, w] or of vectors float[B, h, w, E]."""
        if jnp.issubdtype(latents.dtype, jnp.integer):
            latents = jnp.take(self.codebook, latents, axis=0)
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype)))
