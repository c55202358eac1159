"""Adapter against its formula, with the exact GELU."""

import math

import jax
import numpy as np

from tests.helpers.networks import abstract, random_params
from unitoken_jax.model.adapter import Adapter


def test_linear_gelu_linear():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32) * 2
    params = random_params(abstract(Adapter(16), x))
    found = jax.jit(lambda: Adapter(16).apply({"params": params}, x))()
    y = x @ params["up"]["kernel"] + params["up"]["bias"]
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    expected = y @ params["down"]["kernel"] + params["down"]["bias"]
    assert params["up"]["kernel"].shape == (8, 16)
    assert params["down"]["kernel"].shape == (16, 16)
    # The tanh approximation differs by 2e-4 and more.
    np.testing.assert_allclose(found, expected, atol=2e-6)
