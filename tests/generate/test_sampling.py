"""Guidance, top-k, temperature and the samples' keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unitoken_jax.generate.sampling import (
    apply_cfg,
    check_sampling,
    position_keys,
    sample,
    sample_keys,
    top_k_mask,
)


def _draws(logits, top_k=10**6, temperature=1.0, count=4000):
    keys = sample_keys(0, np.arange(count))
    tokens = jax.jit(sample)(jnp.tile(jnp.asarray(logits)[None], (count, 1)), keys, top_k, temperature)
    return np.bincount(tokens, minlength=len(logits)) / count


def test_distribution_follows_the_logits():
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1], np.float32))
    np.testing.assert_allclose(_draws(logits), [0.5, 0.1, 0.3, 0.1], atol=0.03)


def test_temperature_sharpens():
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1], np.float32))
    expected = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
    np.testing.assert_allclose(_draws(logits, temperature=0.5), expected, atol=0.03)


def test_top_k_keeps_the_best_and_renormalises():
    logits = np.log(np.array([0.1, 0.5, 0.1, 0.3], np.float32))
    np.testing.assert_allclose(_draws(logits, top_k=2), [0, 0.625, 0, 0.375], atol=0.03)


def test_top_k_one_is_argmax_even_among_equals():
    logits = np.array([1.0, 3.0, 3.0, -2.0], np.float32)
    np.testing.assert_array_equal(_draws(logits, top_k=1, count=50), [0, 1, 0, 0])


@pytest.mark.parametrize("top_k", [1, 2, 7, 63, 64, 65, 10**6])
def test_best_equals_a_stable_sort(top_k):
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, 3e38, -3e38]
    values = np.concatenate([rng.normal(size=24), special, rng.integers(-2, 3, 32)]).astype(np.float32)
    logits = np.stack([rng.permutation(values) for _ in range(20)])
    expected = np.zeros(logits.shape, bool)
    flushed = np.where(np.abs(logits) < 1e-38, 0, logits)  # XLA may treat denormals as zero
    np.put_along_axis(expected, np.argsort(-flushed, axis=-1, kind="stable")[:, :top_k], True, axis=-1)
    np.testing.assert_array_equal(jax.jit(top_k_mask)(logits, top_k), expected)


def test_masked_tokens_are_never_drawn():
    logits = np.array([0.0, -np.inf, 0.0, -np.inf], np.float32)
    frequencies = _draws(logits)
    assert frequencies[1] == frequencies[3] == 0


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_place():
    logits = jax.random.normal(jax.random.key(0), (6, 50))
    together = sample(logits, sample_keys(3, np.arange(6)), 20, 0.9)
    for order in ([4], [5, 4, 0], [1, 4, 2, 3]):
        alone = sample(logits[jnp.array(order)], sample_keys(3, order), 20, 0.9)
        np.testing.assert_array_equal(alone, together[jnp.array(order)])


def test_seeds_numbers_and_steps_give_different_draws():
    logits = jnp.zeros((1, 100_000))
    drawn = {
        int(sample(logits, position_keys(sample_keys(seed, [number]), np.array([[step]]))[0], 10**6, 1.0)[0])
        for seed in (0, 1)
        for number in (0, 1)
        for step in (0, 1)
    }
    assert len(drawn) == 8


def test_guidance_extrapolates_from_the_unconditional_rows():
    logits = jnp.array([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    np.testing.assert_allclose(apply_cfg(logits, 3.0), [[3.0, 4.0], [-10.0, -10.0]])
    np.testing.assert_allclose(apply_cfg(logits, 1.0), logits[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0), "top_k is 0"),
        ((-3, 1.0), "top_k is -3"),
        ((2.5, 1.0), "top_k is 2.5"),
        ((5, -1.0), "temperature is -1.0"),
        ((5, float("nan")), "temperature is nan"),
        ((5, float("inf")), "temperature is inf"),
        ((5, 1.0, 0.0), "guidance is 0.0"),
        ((5, 1.0, -2.0), "guidance is -2.0"),
        ((5, 1.0, float("nan")), "guidance is nan"),
    ],
)
def test_meaningless_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_sampling(*arguments)


def test_temperature_zero_is_greedy():
    assert check_sampling(50, 0.0, 2) == (1, 1.0, 2.0)
