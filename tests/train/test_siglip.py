"""SigLIP's training by labels of regions."""

import itertools

import jax
import numpy as np
import pytest

from unitoken_jax.config import ModelConfig, SiglipConfig, SiglipTrainConfig
from unitoken_jax.model.init import init_network
from unitoken_jax.train.siglip import train_siglip

CONFIG = SiglipConfig(image_size=8, patch_size=2, width=16, depth=1, heads=2, mlp=16)
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]])


def params():
    return init_network(ModelConfig(siglip=CONFIG), "siglip")


def coloured_quarters(number):
    """Images whose quarters are black, red or green, and the colours' numbers."""
    labels = np.random.default_rng(0).integers(0, 3, (number, 2, 2, 1)).astype(np.int32)
    quarters = COLOURS[labels[..., 0]].astype(np.uint8)
    return quarters.repeat(4, axis=1).repeat(4, axis=2), labels


def test_learns_what_is_in_each_region_and_keeps_the_tree():
    start, rows = params(), []
    batches = itertools.repeat(coloured_quarters(16))
    settings = SiglipTrainConfig(steps=60, learning_rate=0.03)
    trained = train_siglip(CONFIG, settings, start, batches, [3], lambda step, row: rows.append((step, row)))
    assert jax.tree.map(np.shape, trained) == jax.tree.map(np.shape, start)
    assert [step for step, _ in rows] == list(range(1, 61))
    assert rows[0][1]["loss"] == pytest.approx(np.log(3), rel=1e-3)  # knows nothing of three colours
    assert rows[-1][1]["loss"] < 0.1
    assert rows[-1][1]["right_images"] == 1
