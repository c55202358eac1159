"""Attention: the formula in numpy, the fused kernels (interpreted), chunks, and part of a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unitoken_jax.model import attention as module
from unitoken_jax.model.attention import KERNELS, attention, cached_attention, kernel_for


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def naive_attention(q, k, v, seen) -> np.ndarray:
    """Head by head with repeated keys; `seen` bool[B, T, S]."""
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for n in range(q.shape[2]):
            kv = n // (q.shape[2] // k.shape[2])
            scores = q[b, :, n] @ k[b, :, kv].T / np.sqrt(q.shape[-1])
            out[b, :, n] = softmax(np.where(seen[b], scores, -np.inf)) @ v[b, :, kv]
    return out


@pytest.mark.parametrize("scores", [None, 12], ids=["at once", "in chunks"])
@pytest.mark.parametrize("visible", ["all", "segments", "positions"])
def test_attention(visible, scores, monkeypatch):
    if scores:
        monkeypatch.setattr(module, "MAX_SCORES", scores)  # 12 of 25: 2 queries at a time, and one of padding
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 5, 2, 8)).astype(np.float32)
    segments = np.array([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]])
    positions = np.array([[0, 2, 1, 4, 4], [3, 3, 0, 1, 2]])
    slots = np.arange(5)
    seen = {
        "all": np.ones((2, 5, 5), bool),
        "segments": (segments[:, :, None] == segments[:, None]) & (slots <= slots[:, None]),
        "positions": slots <= positions[..., None],
    }[visible]
    if visible == "positions":
        found = jax.jit(cached_attention)(q, k.swapaxes(1, 2), v.swapaxes(1, 2), positions)
    else:
        found = jax.jit(attention)(q, k, v, segments if visible == "segments" else None)
    np.testing.assert_allclose(found, naive_attention(q, k, v, seen), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [256, 128], ids=["whole row", "its second half"])
@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_fused_kernels_are_the_plain_one(kernel, queries):
    """Values and gradients, as interpreted programs; rows packed, two query heads a key head."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, queries, 4, 128)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 256, 2, 128)).astype(np.float32)
    cotangent = rng.normal(size=q.shape).astype(np.float32)
    segments = np.stack([np.repeat([1, 2, 3, 0], [100, 60, 80, 16]), np.ones(256, int)]).astype(np.int32)

    def run(attend):
        y, back = jax.vjp(lambda q, k, v: attend(q, k, v, segments), q, k, v)
        return y, *back(cotangent)

    fused = KERNELS[kernel].__wrapped__
    found = jax.jit(lambda: run(lambda *arguments: fused(*arguments, interpret=True)))()
    seen = (segments > 0)[:, -queries:, None, None]
    for a, b in zip(found, jax.jit(lambda: run(attention))()):
        seen = seen if a.shape == q.shape else True  # what padding attends to does not matter
        np.testing.assert_allclose(np.where(seen, a, 0), np.where(seen, b, 0), atol=2e-5)


def test_remat_runs_the_gpu_kernel_once():
    """What its backward pass reads is kept, the sums of exponentials, too."""
    q, segments = jnp.ones((1, 128, 2, 64)), jnp.ones((1, 128), jnp.int32)
    policy = jax.checkpoint_policies.save_only_these_names(module.CONTEXT)

    @functools.partial(jax.checkpoint, policy=policy)
    def loss(q):
        return jnp.sum(attention(q, q, q, segments, "triton") ** 2)

    called = list(kernel_calls(jax.make_jaxpr(jax.grad(loss))(q).jaxpr))
    assert [name for name in called if "preprocess" not in name] == ["mha_forward", "mha_backward"]


def kernel_calls(jaxpr):
    """The names of Pallas kernels that a program calls, in their order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"]
            continue
        for part in equation.params.values():
            part = getattr(part, "jaxpr", part)  # a closed one
            if hasattr(part, "eqns"):
                yield from kernel_calls(part)


@pytest.mark.parametrize("queries", [256, 64], ids=["whole row", "its last quarter"])
def test_causal_blocks_of_queries_are_the_whole(queries, monkeypatch):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, queries, 2, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 256, 2, 8)).astype(np.float32)
    segments = np.repeat([[1, 2]], 128, axis=1)

    def run(blocks):
        monkeypatch.setattr(module, "CAUSAL_QUERY_BLOCKS", blocks)
        return jax.jit(lambda: jax.vjp(lambda *qkv: attention(*qkv, segments), q, k, v)[1](q))()

    for found, expected in zip(run(queries // 64), run(1)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_attention_keeps_its_dtype():
    q, k = jnp.ones((1, 3, 4, 8), jnp.bfloat16), jnp.ones((1, 3, 2, 8), jnp.bfloat16)
    out = jax.eval_shape(attention, q, k, k)
    assert out.dtype == jnp.bfloat16
    assert out.shape == q.shape


def test_the_kernel_follows_the_device():
    devices = (("tpu", 128), ("tpu", 32), ("gpu", 128), ("cpu", 128))
    assert [kernel_for(*device) for device in devices] == ["splash", "xla", "triton", "xla"]
    with pytest.raises(ValueError, match="multiples of 128"):
        module._blocks(200, 1024)


def test_chunked_attention_has_the_gradient_and_needs_the_memory_of_a_chunk(monkeypatch):
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 256, 2, 8)).astype(np.float32)
    segments = np.repeat([[1, 2]], 128, axis=1)

    monkeypatch.setattr(module, "CAUSAL_QUERY_BLOCKS", 1)

    def compiled():
        gradient = jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v, segments) ** 2), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(q, k, v).compile()

    whole = compiled()
    monkeypatch.setattr(module, "MAX_SCORES", 256 * 8)
    chunked = compiled()
    for found, expected in zip(chunked(q, k, v), whole(q, k, v)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    least = 256 * 256 * 2 * 4  # float32 scores of two heads
    assert chunked.memory_analysis().temp_size_in_bytes < least <= whole.memory_analysis().temp_size_in_bytes
