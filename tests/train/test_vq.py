"""VQ training: k-means++, a run that learns with every code, the plain phase, dead codes, PSNR."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unitoken_jax.config import VQConfig, VQTrainConfig
from unitoken_jax.model.init import init_vqgan
from unitoken_jax.train.vq import VQPrograms, psnr, reconstruct, spread, train_vq

CONFIG = VQConfig(
    codes=8,
    embed_dim=4,
    latent_channels=8,
    base_channels=8,
    channel_multipliers=(1, 1, 1),
    res_blocks=0,
    resolution=8,
    mid_attention=False,
    norm_groups=0,
)
TRAIN = VQTrainConfig(steps=500, batch=16, learning_rate=2e-3, autoencoder_steps=200, revive_every=10)


def make_images(number=256, seed=0):
    """8x8 px, four cells of 4x4: mostly background, else one of seven colours."""
    rng = np.random.default_rng(seed)
    colours = np.array([[20, 20, 28], *rng.integers(60, 256, (7, 3))], np.uint8)
    cells = np.where(rng.random((number, 2, 2)) < 0.7, 0, rng.integers(1, 8, (number, 2, 2)))
    return (
        np.kron(cells, np.ones((1, 4, 4), int))[..., None] * 0
        + colours[np.kron(cells, np.ones((1, 4, 4), int))]
    )


def test_spread_gives_every_cluster_a_centre_however_small():
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(6, 3)) * 10
    points = np.concatenate([np.repeat(corners[:1], 500, 0), corners[1:]])  # a crowd, and five alone
    centres = spread(jnp.asarray(points, jnp.float32), 6, jax.random.key(0), 2)
    distance = np.linalg.norm(centres[None] - corners[:, None], axis=-1).min(1)
    assert distance.max() < 1e-3


def test_spread_of_fewer_points_than_centres():
    centres = spread(jnp.ones((5, 2)), 8, jax.random.key(0), 2)
    assert np.isfinite(centres).all()


@pytest.mark.slow
def test_learns_and_uses_its_codes():
    images = make_images().astype(np.uint8)
    seen = []
    params, history = train_vq(CONFIG, TRAIN, images, on_metrics=lambda step, metrics: seen.append(step))
    assert seen == list(range(1, TRAIN.steps + 1))
    assert len(history) == TRAIN.steps
    again, codes = reconstruct(CONFIG, params, images[:50], batch=16)
    assert again.shape == images[:50].shape
    assert again.dtype == np.uint8
    assert codes.shape == (50, 2, 2)
    assert len(np.unique(codes)) >= 6
    assert psnr(images[:50], again) > 20  # the images' mean alone: 10.4


def test_an_unused_code_moves_to_an_encoding_and_used_ones_stay():
    config = dataclasses.replace(CONFIG, codes=4)
    run = VQPrograms(config, TRAIN)
    params = init_vqgan(config, 0)
    now = run.start(params)._replace(used=jnp.array([3, 0, 1, 0]))
    images = make_images(8).astype(np.uint8)
    after = run.revive(now, images)
    before, book = params["codebook"], after.params["codebook"]
    np.testing.assert_array_equal(book[jnp.array([0, 2])], before[jnp.array([0, 2])])
    latents = run.model.apply({"params": params}, images, method="encode").reshape(-1, config.embed_dim)
    for code in (1, 3):
        assert np.linalg.norm(latents - book[code], axis=-1).min() < 1e-4
    assert after.used.sum() == 0


def test_bad_images_are_errors():
    with pytest.raises(ValueError, match=r"float32\[4, 8, 8, 3\]; expected uint8"):
        train_vq(CONFIG, TRAIN, np.zeros((4, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="4 images are fewer than"):
        train_vq(CONFIG, TRAIN, np.zeros((4, 8, 8, 3), np.uint8))


def test_psnr():
    flat = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(flat, flat + np.uint8(255)) == 0
    np.testing.assert_allclose(psnr(flat, flat + np.uint8(51)), 10 * np.log10(25), rtol=1e-6)
