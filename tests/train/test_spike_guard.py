"""Guard: what is left out, judged by the last steps taken alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unitoken_jax.train.spike_guard import check_step, create

WINDOW, SIGMA = 8, 6.0
judged = jax.jit(functools.partial(check_step, sigma=SIGMA))


def feed(guard, losses, norms=None):
    """(what was taken, the guard after, the last metrics)."""
    taken = []
    for loss, norm in zip(losses, norms if norms is not None else np.ones(len(losses))):
        ok, guard, metrics = judged(guard, jnp.float32(loss), jnp.float32(norm))
        taken.append(bool(ok))
    return taken, guard, metrics


def test_limits_are_those_of_the_last_accepted_steps():
    rng = np.random.default_rng(0)
    losses, norms = rng.normal(2, 0.1, (2, 30))
    losses[[5, 20]] = np.nan
    taken, guard, _ = feed(create(WINDOW), losses, norms)
    assert taken == [bool(np.isfinite(loss)) for loss in losses]
    assert int(guard.accepted) == 28
    last = np.flatnonzero(taken)[-WINDOW:]
    _, _, metrics = feed(guard, [2.0])
    for name, values in (("loss_limit", losses), ("grad_norm_limit", norms)):
        expected = values[last].mean() + SIGMA * values[last].std(ddof=1)
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)


def test_leaps_count_from_half_a_window_on_and_only_upwards():
    steady = [2.0, 2.1, 1.9]
    assert feed(create(WINDOW), [*steady, 50.0])[0] == [True] * 4  # three steps say nothing yet
    steady.append(2.05)
    taken, guard, metrics = feed(create(WINDOW), [*steady, 50.0, 50.0, 0.1, 50.0])
    assert taken == [True] * 4 + [False, False, True, False]
    assert (int(guard.accepted), int(guard.consecutive_skips)) == (5, 1)
    assert float(metrics["consecutive_skips"]) == 1
    assert 50.0 not in np.asarray(guard.losses)
    norms = [1.0, 1.1, 0.9, 1.0, 9.0]
    assert feed(create(WINDOW), [*steady, 2.0], norms)[0] == [True] * 4 + [False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_from_the_first_step(bad):
    assert feed(create(WINDOW), [bad, 1.0], [1.0, bad])[0] == [False, False]
    ok, _, _ = check_step(create(WINDOW), jnp.float32(bad), jnp.float32(1.0), sigma=0.0)
    assert not ok


def test_sigma_zero_judges_no_leaps():
    _, guard, _ = feed(create(WINDOW), [2.0, 2.1, 1.9, 2.0, 2.0])
    ok, _, metrics = check_step(guard, jnp.float32(1e9), jnp.float32(1e9), sigma=0.0)
    assert ok
    assert np.isinf(metrics["loss_limit"])
