"""Weights in 8 and 4 bits and an int8 cache: close enough, small enough, loaded layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.networks import quantize_params, random_params
from tests.helpers.tiny_model import CONFIG, noise, tiny_model, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.config import DecoderConfig
from unitoken_jax.model.decoder import Decoder, init_cache
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.quantize import quantize_entries, quantize_kernel


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("bits", [8, 4])
def test_product_is_that_of_the_rounded_kernel(bits, backend, monkeypatch):
    """To the 15 bits that x keeps; and the kernel's own rounding is at most half a step."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(256, 24)).astype(np.float32), rng.normal(size=(2, 3, 256)).astype(np.float32)
    stacked = quantize_kernel([kernel], bits)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stacked)
    steps = np.repeat(np.asarray(one.scales), 256 // one.scales.shape[0], axis=0)
    rounded = np.asarray(one.values, np.float32) * steps
    assert (np.abs(rounded - kernel) <= steps / 2 * 1.0001).all()
    found = jax.jit(lambda one, x: one.product(x))(one, x)
    np.testing.assert_allclose(found, x @ rounded, atol=2e-3)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(one.product(jnp.zeros((1, 256))), 0)


def test_entries_keep_their_direction():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 64)).astype(np.float32)
    entries = quantize_entries(x)
    assert entries.values.dtype == jnp.int8
    np.testing.assert_allclose(entries.values * entries.scales[..., None], x, atol=np.abs(x).max() / 250)


def bytes_of(tree) -> float:
    sizes = {"int8": 1, "int4": 0.5, "float32": 2}  # what is not quantised is bfloat16 where it counts
    return sum(leaf.size * sizes[leaf.dtype.name] for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cosine", "share"), [("int8", 0.999, 0.55), ("int4", 0.85, 0.32)])
def test_logits_and_bytes(name, cosine, share):
    """A decoder of the 7B model's proportions, 30 tokens read in and 2 one by one, all from an int8 cache.

    Random weights are the worst case: every one of them matters alike.
    """
    config = DecoderConfig(vocab_size=512, width=256, depth=4, heads=2, kv_heads=2, mlp=640, dropout=0.0)
    boxed = abstract_params(dataclasses.replace(CONFIG, decoder=config))["decoder"]
    module, params = Decoder(config), random_params(boxed)
    small = quantize_params({"decoder": params}, name)["decoder"]
    x = np.random.default_rng(0).normal(size=(2, 32, 256)).astype(np.float32)
    positions = np.tile(np.arange(32, dtype=np.int32), (2, 1))

    @jax.jit
    def run(params, cache):
        out = []
        for at in (slice(30), slice(30, 31), slice(31, 32)):
            hidden, cache = module.apply(
                {"params": params}, x[:, at], positions[:, at], cache, method="extend"
            )
            out.append(module.apply({"params": params}, hidden, method="logits"))
        return jnp.concatenate(out, axis=1)

    exact = run(params, init_cache(config, 2, 32)).reshape(-1, 512)
    found = run(small, init_cache(config, 2, 32, jnp.int8)).reshape(-1, 512)
    alike = jnp.sum(exact * found, -1) / jnp.linalg.norm(exact, axis=-1) / jnp.linalg.norm(found, axis=-1)
    assert alike.min() >= cosine
    assert bytes_of(small["layers"]) <= share * bytes_of(params["layers"])


@pytest.mark.slow
def test_a_loaded_model_draws_and_answers(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "model", model.config, tiny_params(), model.tokenizer)
    small = UniToken.load(tmp_path / "model", quantize="int8")
    in_memory = UniToken(CONFIG, quantize_params(tiny_params(), "int8"), tiny_tokenizer(), cache_dtype="int8")
    loaded, made = (jax.tree.leaves_with_path(each.params) for each in (small, in_memory))
    assert [path for path, _ in loaded] == [path for path, _ in made]
    for (_, a), (_, b) in zip(loaded, made):
        np.testing.assert_array_equal(a, b)
    assert small.generate(["a red circle"], seed=0)[0].size == (16, 16)
    assert isinstance(small.answer([["what is this ?", noise(0)]])[0], str)
    with pytest.raises(ValueError, match="quantize is 'int3'; expected int8 or int4"):
        UniToken.load(tmp_path / "model", quantize="int3")
    with pytest.raises(ValueError, match="int4 needs inputs in groups of 128, but a kernel has 32"):
        UniToken.load(tmp_path / "model", quantize="int4")
