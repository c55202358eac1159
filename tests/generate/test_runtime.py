"""Parameters are held once, apart for decoding, and reading them changes nothing."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint import model_directory
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.model import decoder
from unitoken_jax.model.decoder import stack_layers
from unitoken_jax.model.sharding import make_mesh


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "model"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path


def live_bytes() -> int:
    """Of what is referred to: call `gc.collect` first where cycles may hold arrays."""
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.slow
def test_reading_the_parameters_never_copies_them_before_or_after_decoding(path):
    gc.collect()
    before = live_bytes()
    model = UniToken.load(path)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_params()))
    leaves = jax.tree.leaves(model.params)
    gc.collect()
    assert live_bytes() - before <= 1.01 * size
    model.answer([[noise(0), "what is this ?"]], max_tokens=2)
    model.generate(["a red circle"])
    for params in (model.params, model.params):
        assert all(a is b for a, b in zip(jax.tree.leaves(params), leaves, strict=True))
    gc.collect()
    assert live_bytes() - before <= 1.01 * size


@pytest.mark.parametrize("spread", [False, True], ids=["a device", "a mesh"])
def test_loading_holds_no_more_than_one_stack_twice(path, spread, monkeypatch):
    gc.collect()
    before, peak = live_bytes(), []

    def counted(function):
        def called(*arguments):
            result = function(*arguments)
            peak.append(live_bytes() - before)
            return result

        return called

    monkeypatch.setattr(decoder, "_slices", counted(decoder._slices))
    monkeypatch.setattr(model_directory, "_place", counted(model_directory._place))
    model = UniToken.load(path, mesh=make_mesh() if spread else None)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(tiny_params()["decoder"]["layers"]))
    assert peak
    assert max(peak) <= size + largest


def test_stacking_the_layers_restores_what_was_saved(path):
    model = UniToken.load(path)
    params = model.params["decoder"]
    assert sorted(params["layers"]) == [str(i) for i in range(CONFIG.decoder.depth)]
    jax.tree.map(np.testing.assert_array_equal, stack_layers(params), tiny_params()["decoder"])


def test_parameters_in_memory_are_not_changed():
    params = tiny_params()
    shapes = jax.tree.map(np.shape, params)
    UniToken(CONFIG, params, tiny_tokenizer()).answer([["what is this ?"]], max_tokens=2)
    assert jax.tree.map(np.shape, params) == shapes


def test_apply_takes_the_layers_stacked_or_apart():
    model, zeros = UniToken(CONFIG, tiny_params(), tiny_tokenizer()), jnp.zeros((1, 4), jnp.int32)
    batch = {"tokens": zeros + 5, "segments": zeros + 1, "positions": jnp.arange(4)[None]}
    apart, stacked = model.apply(model.params, batch), model.apply(tiny_params(), batch)
    np.testing.assert_allclose(apart, stacked, atol=1e-5)
    with pytest.raises(ValueError, match="train them stacked"):
        model.module.apply({"params": model.params}, batch, deterministic=False)
