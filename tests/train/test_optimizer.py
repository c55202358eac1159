"""Optimizer: stages, groups, schedule, and AdamW against the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unitoken_jax.config import OptimizerConfig, ParameterGroup
from unitoken_jax.train.optimizer import peak_rates, schedule, stage_groups, transformation

PATHS = (
    "siglip/patch_embed/kernel",
    "siglip/position_embed",
    "siglip/layers/mlp/kernel",
    "adapter/up/kernel",
    "decoder/embed/embedding",
    "decoder/lm_head/kernel",
    "vqgan/codebook",
)


def test_stages_are_the_papers():
    vit = {"siglip/layers/mlp/kernel": 1e-5}
    assert peak_rates(PATHS, stage_groups(1)) == vit | {"adapter/up/kernel": 1e-3}
    everything = ("adapter/up/kernel", "decoder/embed/embedding", "decoder/lm_head/kernel")
    for stage in (2, 3):
        assert peak_rates(PATHS, stage_groups(stage)) == vit | dict.fromkeys(everything, 1e-5)
    with pytest.raises(ValueError, match="no training stage 4"):
        stage_groups(4)


def test_the_first_group_that_matches_counts_and_the_tokenizer_never_trains():
    groups = (ParameterGroup("lm_head", 0.0), ParameterGroup("^decoder", 0.5), ParameterGroup("", 0.1))
    rates = peak_rates(PATHS, groups)
    assert rates["decoder/embed/embedding"] == 0.5
    assert rates["adapter/up/kernel"] == 0.1
    assert "decoder/lm_head/kernel" not in rates
    assert "vqgan/codebook" not in rates


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((ParameterGroup("decodr", 1.0),), "'decodr' finds no parameter"),
        ((ParameterGroup("(", 1.0),), "no regular expression"),
        ((ParameterGroup("decoder", 0.0),), "trains no parameter"),
        ((), "trains no parameter"),
    ],
)
def test_bad_groups_are_errors(groups, message):
    with pytest.raises(ValueError, match=message):
        peak_rates(PATHS, groups)


def test_schedule_is_the_recorded_one():
    """Reference README: step / 2 for step < 2, else 0.5 (1 + cos(pi (step - 2) / 8)), of ten steps."""
    for step in range(11):
        expected = step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 8))
        np.testing.assert_allclose(schedule(step, 10, 2), expected, atol=1e-6)
    assert schedule(0, 10, 0) == 1
    assert np.isfinite(schedule(1, 1, 1))


def test_three_steps_of_adamw_by_hand():
    config = OptimizerConfig(clip_norm=1.0)
    optimizer = transformation(config)
    params = {"a": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    value, mean, square = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for step in range(1, 4):
        gradient = np.array([3.0, -4.0]) * step
        updates, state = optimizer.update({"a": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, {"a": -0.1 * updates["a"]})
        clipped = gradient / np.linalg.norm(gradient)  # above 1 every time
        mean = config.b1 * mean + (1 - config.b1) * clipped
        square = config.b2 * square + (1 - config.b2) * clipped**2
        adam = mean / (1 - config.b1**step) / (np.sqrt(square / (1 - config.b2**step)) + config.eps)
        value = value - 0.1 * (adam + config.weight_decay * value)
        np.testing.assert_allclose(params["a"], value, rtol=1e-5)


def test_muon_moves_a_kernel_by_its_orthogonal_factor_and_the_rest_like_adam():
    config = OptimizerConfig(name="muon", clip_norm=1e9, weight_decay=0.0)
    optimizer = transformation(config)
    shapes = {
        "decoder/layers/mlp/up/kernel": (3, 8, 16),
        "decoder/lm_head/kernel": (8, 16),
        "decoder/embed/embedding": (16, 8),
        "decoder/norm/scale": (8,),
    }
    rng = np.random.default_rng(0)
    gradients = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for gradient, update in zip(*(tree["decoder/layers/mlp/up/kernel"] for tree in (gradients, updates))):
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        # Newton-Schulz leaves singular values near 1, not at it.
        cosine = np.sum(update * (left @ right)) / np.linalg.norm(update) / np.linalg.norm(left @ right)
        assert cosine > 0.97
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(update))), 0.2, rtol=0.15)
    for path in list(shapes)[1:]:  # the first step of Adam is the gradient's sign
        np.testing.assert_allclose(np.sign(gradients[path]), np.sign(updates[path]))
        np.testing.assert_allclose(np.abs(updates[path]).max(), np.abs(updates[path]).min(), rtol=1e-3)
