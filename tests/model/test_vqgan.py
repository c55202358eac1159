"""VQ-GAN: published sizes, nearest code, straight-through gradient, losses, bad input."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.networks import VQ, abstract, random_params
from unitoken_jax.config import VQConfig
from unitoken_jax.model.vqgan import GroupNorm, VQModel


def image(side: int):
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)


def test_published_sizes():
    module = VQModel(VQConfig())
    params = nn.meta.unbox(abstract(module, image(512)))
    flat = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    assert flat["codebook"] == (8192, 256)
    assert flat["encoder/conv_in/kernel"] == (3, 3, 3, 128)
    assert flat["encoder/down_2/block_0/shortcut/kernel"] == (1, 1, 128, 256)
    assert flat["encoder/downsample_3/kernel"] == (3, 3, 256, 256)
    assert flat["encoder/conv_out/kernel"] == (3, 3, 512, 256)
    assert flat["decoder/conv_in/kernel"] == (3, 3, 256, 512)
    assert flat["decoder/up_4/block_2/conv2/kernel"] == (3, 3, 512, 512)
    assert flat["decoder/up_3/block_0/shortcut/kernel"] == (1, 1, 512, 256)
    assert flat["decoder/upsample_1/kernel"] == (3, 3, 128, 128)
    assert flat["decoder/conv_out/kernel"] == (3, 3, 128, 3)
    assert flat["quant_conv/kernel"] == flat["post_quant_conv/kernel"] == (1, 1, 256, 256)
    for part in ("encoder", "decoder"):
        assert flat[f"{part}/mid/attention/q/kernel"] == (1, 1, 512, 512)
    assert not [name for name in flat if "downsample_4" in name or "upsample_0" in name]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    assert counts == {
        "encoder": expected_size(VQConfig(), decoder=False),
        "decoder": expected_size(VQConfig(), decoder=True),
        "quant_conv": 256 * 256 + 256,
        "post_quant_conv": 256 * 256 + 256,
        "codebook": 8192 * 256,
    }
    latents = jax.eval_shape(lambda p, x: module.apply({"params": p}, x, method="encode"), params, image(512))
    assert latents.shape == (1, 32, 32, 256)


def expected_size(config: VQConfig, decoder: bool) -> int:
    """Parameters of one side, counted from the architecture's description."""

    def conv(a, b, size=3):
        return size * size * a * b + b

    def block(a, b):
        return 2 * a + conv(a, b) + 2 * b + conv(b, b) + (conv(a, b, 1) if a != b else 0)

    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    top = widths[-1]
    total = 2 * block(top, top) + 2 * top + 4 * conv(top, top, 1)
    if decoder:
        total += conv(config.latent_channels, top) + 2 * widths[0] + conv(widths[0], 3)
        levels, before, blocks = widths[::-1], top, config.res_blocks + 1
    else:
        total += conv(3, config.base_channels) + 2 * top + conv(top, config.latent_channels)
        levels, before, blocks = widths, config.base_channels, config.res_blocks
    for number, width in enumerate(levels):
        total += block(before, width) + (blocks - 1) * block(width, width)
        total += conv(width, width) if number + 1 < len(levels) else 0  # down- or upsampling
        before = width
    return total


@pytest.fixture(scope="module")
def tiny():
    module = VQModel(VQ)
    return module, random_params(abstract(module, image(8)))


@pytest.fixture(scope="module")
def run(tiny):
    module, params = tiny
    return jax.jit(lambda images: module.apply({"params": params}, images))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 4, 8, 3), np.uint8)


def test_picks_the_nearest_code(tiny):
    module, params = tiny
    latents = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
    quantized, codes = module.apply({"params": params}, latents, method="quantize")
    distances = np.linalg.norm(latents[..., None, :] - params["codebook"], axis=-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    np.testing.assert_array_equal(quantized, params["codebook"][codes])
    assert codes.dtype == jnp.int32


def test_whole_model_is_its_parts(tiny, run, images):
    module, params = tiny
    reconstruction, losses, codes = run(images)

    @jax.jit
    def parts(images):
        latents = module.apply({"params": params}, images, method="encode")
        quantized, codes = module.apply({"params": params}, latents, method="quantize")
        return latents, quantized, codes, module.apply({"params": params}, codes, method="decode")

    latents, quantized, same_codes, decoded = parts(images.astype(np.float32) / 127.5 - 1)
    assert latents.shape == (2, 2, 4, 6)
    assert reconstruction.shape == images.shape
    np.testing.assert_array_equal(codes, same_codes)
    np.testing.assert_allclose(reconstruction, decoded, atol=1e-5)
    gap = np.mean(np.square(latents - quantized))
    np.testing.assert_allclose(losses["codebook"], gap, rtol=1e-5)
    np.testing.assert_allclose(losses["commitment"], 0.25 * gap, rtol=1e-5)


@pytest.mark.slow
def test_gradients_go_straight_through(images):
    """The decoder's gradient reaches the encoder unchanged, and the codebook only by its own loss."""
    small = dataclasses.replace(VQ, channel_multipliers=(1,), res_blocks=0, mid_attention=False)
    module = VQModel(small)
    params = random_params(abstract(module, image(4)))
    x = images.astype(np.float32) / 127.5 - 1

    def reconstruct(params):
        return jnp.sum(jnp.square(module.apply({"params": params}, x)[0]))

    def losses(params):
        return module.apply({"params": params}, x)[1]

    @jax.jit
    def gradients(params):
        one = jax.grad(reconstruct)(params)
        book = jax.grad(lambda p: losses(p)["codebook"])(params)
        commit = jax.grad(lambda p: losses(p)["commitment"])(params)
        # Decoder's gradient at the quantized latents, pulled back through the encoder alone.
        encode = lambda p: module.apply({"params": p}, x, method="encode")  # noqa: E731
        latents, back = jax.vjp(encode, params)
        quantized = module.apply({"params": params}, latents, method="quantize")[0]
        decode = lambda z: jnp.sum(jnp.square(module.apply({"params": params}, z, method="decode")))  # noqa: E731
        return one, book, commit, back(jax.grad(decode)(quantized))[0]

    one, book, commit, expected = gradients(params)
    size = lambda tree: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))  # noqa: E731
    for part in ("encoder", "quant_conv"):
        for a, b in zip(jax.tree.leaves(one[part]), jax.tree.leaves(expected[part])):
            np.testing.assert_allclose(a, b, atol=1e-4 * size(expected[part]))
        assert size(one[part]) > 1e-3
        assert size(commit[part]) > 1e-5
        assert size(book[part]) == 0
    assert size(one["codebook"]) == size(commit["codebook"]) == 0
    assert size(book["codebook"]) > 1e-5
    assert size(commit["decoder"]) == size(book["decoder"]) == 0


def test_odd_sizes_are_errors(run):
    with pytest.raises(ValueError, match="7 x 8 px; the tokenizer needs multiples of 2"):
        run(np.zeros((1, 7, 8, 3), np.uint8))


@pytest.mark.parametrize(("groups", "unchanged"), [(2, False), (0, True)])
def test_no_groups_is_scale_and_bias_alone(groups, unchanged):
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 6)).astype(np.float32)
    scale, bias = np.arange(1, 7, dtype=np.float32), np.ones(6, np.float32)
    y = GroupNorm(groups).apply({"params": {"scale": scale, "bias": bias}}, x)
    assert np.allclose(y, x * scale + bias, atol=1e-5) == unchanged
