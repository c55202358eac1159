"""What must hold whatever the weights: causality, cache = full forward, scan = loop, remat = plain,
packed = alone, ragged batch = single rows. Both kinds of decoder block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.networks import DECODER, abstract, layer, random_params
from unitoken_jax.model.decoder import Decoder, DecoderBlock, init_cache
from unitoken_jax.model.layers import RMSNorm, rope_table

T = 10
PRE = dataclasses.replace(DECODER, dropout=0.0)
OUTPUT = dataclasses.replace(PRE, norm="output", kv_heads=4, qk_norm_shards=1)

pytestmark = pytest.mark.parametrize("config", [PRE, OUTPUT], ids=["pre", "output"])


def inputs(rows: int = 1, length: int = T) -> jax.Array:
    return np.random.default_rng(length).normal(size=(rows, length, PRE.width)).astype(np.float32)


def one_segment(rows: int = 1, length: int = T):
    return np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))


def make(config, **settings):
    module = Decoder(config, **settings)
    return module, random_params(abstract(Decoder(config), inputs(), *one_segment()))


@functools.cache
def compiled(config, **settings):
    module, params = make(config, **settings)
    return jax.jit(lambda x, segments, positions: module.apply({"params": params}, x, segments, positions))


def forward(config, x, segments, positions, **settings) -> np.ndarray:
    return np.asarray(compiled(config, **settings)(x, segments, positions))


def test_causality(config):
    """The gradient of one position's output reaches every earlier input of its segment and nothing else.

    A mask that leaks shows here even where its effect on the values is too small to see.
    """
    module, params = make(config)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0, 1]])

    def output(x, t):
        # Squared: the sum of a normalised vector may have no gradient.
        return jnp.sum(jnp.square(module.apply({"params": params}, x, segments, positions)[0, t] + 1.0))

    gradients = jax.jit(jax.vmap(jax.grad(output), in_axes=(None, 0)))(inputs(), jnp.arange(T))
    reached = np.abs(gradients[:, 0]).max(axis=-1) > 0
    same = segments[0][:, None] == segments[0]
    np.testing.assert_array_equal(reached, same & np.tri(T, dtype=bool))


def test_cache_is_full_forward(config):
    """Prefill of 4, then three at once, then one at a time."""
    module, params = make(config)
    x, (segments, positions) = inputs(2), one_segment(2)
    expected = forward(config, x, segments, positions)
    extend = jax.jit(lambda x, p, cache: module.apply({"params": params}, x, p, cache, method="extend"))
    cache, found = init_cache(config, 2, T), []
    for first, last in ((0, 4), (4, 7), (7, 8), (8, 9), (9, 10)):
        hidden, cache = extend(x[:, first:last], positions[:, first:last], cache)
        found.append(hidden)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-5)


def test_ragged_batch_is_single_rows(config):
    """Right-padded prompts of 2, 5 and 2 tokens, continued by 3 tokens each at its own length."""
    module, params = make(config)
    lengths = np.array([2, 5, 2])
    prompts, continued = inputs(3, 5), inputs(3, 3)
    extend = jax.jit(lambda x, p, cache: module.apply({"params": params}, x, p, cache, method="extend"))
    hidden, cache = extend(prompts, one_segment(3, 5)[1], init_cache(config, 3, 8))
    found = [[hidden[b, : lengths[b]]] for b in range(3)]
    for step in range(3):
        hidden, cache = extend(continued[:, step : step + 1], (lengths + step)[:, None], cache)
        for b in range(3):
            found[b].append(hidden[b])
    for b, length in enumerate(lengths):
        row = np.concatenate([prompts[b : b + 1, :length], continued[b : b + 1]], axis=1)
        alone = forward(config, row, *one_segment(1, length + 3))
        np.testing.assert_allclose(np.concatenate(found[b]), alone[0], atol=1e-5)


def test_packed_is_alone(config):
    x = inputs()
    segments = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 3, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 2, 0, 1, 2, 0]])
    packed = forward(config, x, segments, positions)
    for first in (0, 3, 6):
        alone = forward(config, x[:, first : first + 3], *one_segment(1, 3))
        np.testing.assert_allclose(
            packed[:, first : first + 3], alone, rtol=0, atol=1e-6 * np.abs(alone).max()
        )


def test_scan_is_loop(config):
    """The scanned stack against applying the blocks one by one in Python, and against the unrolled stack."""
    _, params = make(config)
    x, (segments, positions) = inputs(), one_segment()

    @jax.jit
    def loop(x):
        rope = rope_table(positions, config.head_dim, config.rope_theta)
        for i in range(config.depth):
            block = {"params": layer(params["layers"], i)}
            x, _ = DecoderBlock(config).apply(block, x, rope, segments, positions, True)
        return RMSNorm(config.norm_eps).apply({"params": params["norm"]}, x)

    expected = loop(x)
    np.testing.assert_allclose(forward(config, x, segments, positions), expected, atol=1e-6)
    np.testing.assert_allclose(forward(config, x, segments, positions, scan=False), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("remat", "scan"),
    [("dots", True), ("qkv", True), ("full", True), ("full", False)],
    ids=["dots", "qkv", "full", "full-unrolled"],
)
def test_remat_is_plain(config, remat, scan):
    """Forward and gradient; and the backward pass really computes the layers again."""
    plain, products = gradient(config, "none", True)
    found, taken = gradient(config, remat, scan)
    down = config.norm == "output"  # only the norm after it needs what a layer's last product gives
    again = {"dots": 1, "qkv": 4 + down, "full": 8 + down}[remat]  # scores; o, gate, up; the rest
    assert taken - products == again if scan else taken > products
    for a, b in zip(found, plain):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@functools.cache
def gradient(config, remat, scan):
    """Loss and gradient's leaves, and the matrix products a layer takes in the compiled program."""
    module, params = make(config, remat=remat, scan=scan)
    x, (segments, positions) = inputs(), one_segment()

    def loss(params):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x, segments, positions)))

    run = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return jax.tree.leaves(run(params)), run.as_text().count(" dot(") / (1 if scan else config.depth)
