"""Decoder: published sizes, and its parts against their formulas in numpy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.networks import DECODER, abstract, random_params
from unitoken_jax.config import DecoderConfig
from unitoken_jax.model.decoder import Decoder, init_cache, unstack_layers
from unitoken_jax.model.layers import (
    Normal,
    QKNorm,
    RMSNorm,
    apply_rope,
    matmul,
    rope_table,
    scan_layers,
)

BIG = DecoderConfig(width=8192, depth=48, heads=64, kv_heads=8, mlp=22016, qk_norm_shards=4, norm="output")


def decoder_shapes(config: DecoderConfig) -> dict:
    rows = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    x = jax.ShapeDtypeStruct((1, 4, config.width), jnp.float32)

    def run(module, x, segments, positions):
        return module.embed(positions), module.logits(module(x, segments, positions))

    init = nn.init(run, Decoder(config))
    params = jax.eval_shape(init, jax.random.key(0), x, rows, rows)["params"]
    return flatten_dict(nn.meta.unbox(params), sep="/")


@pytest.mark.parametrize(
    ("config", "billions"), [(DecoderConfig(), 7.013), (BIG, 34.2935)], ids=["7b", "34b"]
)
def test_published_sizes(config, billions):
    L, D, H, V, F = config.depth, config.width, config.head_dim, config.vocab_size, config.mlp
    N, K, shards = config.heads, config.kv_heads, config.qk_norm_shards
    found = decoder_shapes(config)
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "embed/embedding": (V, D),
        "layers/attention/q/kernel": (L, D, N * H),
        "layers/attention/k/kernel": (L, D, K * H),
        "layers/attention/v/kernel": (L, D, K * H),
        "layers/attention/o/kernel": (L, N * H, D),
        "layers/attention/q_norm/scale": (L, shards, H),
        "layers/attention/q_norm/bias": (L, shards, H),
        "layers/attention/k_norm/scale": (L, shards, H),
        "layers/attention/k_norm/bias": (L, shards, H),
        "layers/attention_norm/scale": (L, D),
        "layers/mlp/gate/kernel": (L, D, F),
        "layers/mlp/up/kernel": (L, D, F),
        "layers/mlp/down/kernel": (L, F, D),
        "layers/mlp_norm/scale": (L, D),
        "norm/scale": (D,),
        "lm_head/kernel": (D, V),
    }
    assert sum(leaf.size for leaf in found.values()) / 1e9 == pytest.approx(billions, abs=2e-4)
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}


def test_rope_is_the_half_split_rotation():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 5, 4000]])
    found = apply_rope(x, rope_table(positions, 8, 10000.0))
    for t, position in enumerate(positions[0]):
        for i in range(4):
            turned = (x[0, t, :, i] + 1j * x[0, t, :, i + 4]) * np.exp(1j * position * 10000.0 ** (-i / 4))
            np.testing.assert_allclose(found[0, t, :, i], turned.real, atol=2e-3 if t == 2 else 1e-5)
            np.testing.assert_allclose(found[0, t, :, i + 4], turned.imag, atol=2e-3 if t == 2 else 1e-5)


def test_rms_norm_computes_in_float32():
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32) * 200  # squares overflow float16
    norm = RMSNorm(1e-5, jnp.float16)
    found = norm.apply({"params": {"scale": np.full(64, 2.0, np.float32)}}, x.astype(np.float16))
    expected = 2 * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_head_norm_repeats_each_shards_row():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 4, 8)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 2, 8)).astype(np.float32)
    found = QKNorm(2).apply({"params": {"scale": scale, "bias": bias}}, x)
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    for head, row in enumerate((0, 0, 1, 1)):
        np.testing.assert_allclose(found[:, :, head], plain[:, :, head] * scale[row] + bias[row], atol=1e-5)
    with pytest.raises(ValueError, match="qk_norm_shards 2 does not divide 3 heads"):
        QKNorm(2).apply({"params": {"scale": scale, "bias": bias}}, x[:, :, :3])


def test_matmul_has_the_plain_products_gradient():
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 5), (5, 7), (2, 3, 7)))
    ours = functools.partial(matmul, axes=(None, None))
    found, expected = (jax.vjp(f, x, kernel)[1](cotangent) for f in (ours, jnp.matmul))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)


class Noise(nn.Module):
    """A layer that returns its random numbers: a parameter and a dropout mask."""

    @nn.compact
    def __call__(self, x, _):
        return x, (
            self.param("made", Normal(1.0), (8,)),
            nn.Dropout(0.5)(jnp.ones(64), deterministic=False),
        )


def test_layers_draw_their_own_random_numbers():
    module = scan_layers(Noise, 3, "full", True, in_axes=0)()
    init = lambda key: module.init_with_output({"params": key, "dropout": key}, jnp.ones(1), jnp.arange(3))[0]  # noqa: E731
    for drawn in jax.jit(init)(jax.random.key(0))[1]:
        assert len(np.unique(drawn, axis=0)) == 3


@pytest.fixture(scope="module")
def tiny():
    """Decoder, parameters, embeddings, segments and positions."""
    x = np.random.default_rng(1).normal(size=(2, 6, DECODER.width)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0]] * 2)
    positions = np.array([[0, 1, 2, 0, 1, 0]] * 2)
    module = Decoder(DECODER)
    return module, random_params(abstract(module, x, segments, positions)), x, segments, positions


def test_dropout_needs_its_key_and_deterministic_false(tiny):
    module, params, x, segments, positions = tiny

    @jax.jit
    def dropped(key):
        return module.apply({"params": params}, x, segments, positions, False, rngs={"dropout": key})

    plain = jax.jit(lambda: module.apply({"params": params}, x, segments, positions))()
    first, again, other = (dropped(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 0.1
    assert np.abs(first - other).max() > 0.1
    with pytest.raises(Exception, match="dropout"):
        module.apply({"params": params}, x, segments, positions, False)


def test_padding_is_finite_and_computation_follows_dtype(tiny):
    _, params, x, segments, positions = tiny
    module = Decoder(dataclasses.replace(DECODER, dropout=0.0), jnp.bfloat16)
    hidden = jax.jit(lambda: module.apply({"params": params}, x, segments * 0, positions))()
    assert hidden.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(hidden, np.float32)).all()


def test_cache_drops_what_does_not_fit(tiny):
    module, params, x, _, _ = tiny
    cache = init_cache(DECODER, 2, 4)
    assert {part.shape for part in (*cache.k, *cache.v)} == {(2, 2, 4, 8)}
    positions = np.array([[0, 1, 2, 3, 4, 5], [-1, 0, 1, 2, 3, 4]])

    @jax.jit
    def extend(cache):
        return module.apply({"params": params}, x, positions, cache, method="extend")[1]

    full = extend(init_cache(DECODER, 2, 8))
    short = extend(cache)
    for few, all in zip(short.k, full.k):
        np.testing.assert_allclose(few, all[:, :, :4], atol=1e-5)
        assert (np.asarray(all[0, :, 6:]) == 0).all()
        assert (np.asarray(all[1, :, 5:]) == 0).all()  # position -1 went nowhere, not to the last slot


def test_extend_reads_stacked_and_unstacked_layers_alike(tiny):
    module, params, x, _, _ = tiny
    positions = np.tile(np.arange(6), (2, 1))
    extend = jax.jit(
        lambda p: module.apply({"params": p}, x, positions, init_cache(DECODER, 2, 6), method="extend")
    )
    for found, expected in zip(*(jax.tree.leaves(extend(p)) for p in (params, unstack_layers(params)))):
        np.testing.assert_allclose(found, expected, atol=1e-6)
