"""The unified model: where features and codes go, batches without crops, prefill with features."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.networks import DECODER, MODEL, VQ, random_params
from unitoken_jax.model.decoder import init_cache
from unitoken_jax.model.init import abstract_params, init_params, init_vqgan
from unitoken_jax.model.unitoken import UniTokenModel, insert_codes, insert_vq_tokens
from unitoken_jax.model.vqgan import VQModel

T, PATCHES = 8, 9
MODULE = UniTokenModel(MODEL)


@pytest.fixture(scope="module")
def params():
    return random_params(abstract_params(MODEL))


@pytest.fixture(scope="module")
def batch():
    """Two rows of two crops each; features out of order, and the first crop's twice."""
    rng = np.random.default_rng(0)
    soft = np.array([[-1, 9, 0, 17, -1, -1, 0, -1], [-1, -1, 3, -1, 4, 5, -1, 10]], np.int32)
    return {
        "tokens": rng.integers(0, DECODER.vocab_size, (2, T)).astype(np.int32),
        "labels": np.full((2, T), -1, np.int32),
        "segments": np.ones((2, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (2, 1)),
        "image_feature_index": soft,
        "crops": rng.integers(0, 256, (2, 2, 20, 20, 3), np.uint8),
    }


def without(batch: dict, *names: str) -> dict:
    return {name: value for name, value in batch.items() if name not in names}


def test_features_go_where_soft_index_says(params, batch):
    @jax.jit
    def run(tokens, image_feature_index, crops):
        features = MODULE.apply({"params": params}, crops, method="features")
        x = MODULE.apply({"params": params}, tokens, image_feature_index, features, method="embed")
        one = MODULE.apply({"params": params}, crops[1:, 1:], method="features")
        return features, x, one

    features, x, one = run(batch["tokens"], batch["image_feature_index"], batch["crops"])
    assert features.shape == (2, 2 * PATCHES, DECODER.width)
    np.testing.assert_allclose(features[1, PATCHES:], one[0], atol=1e-5)
    table = params["decoder"]["embed"]["embedding"]
    for b, t in np.ndindex(2, T):
        index = batch["image_feature_index"][b, t]
        np.testing.assert_array_equal(
            x[b, t], table[batch["tokens"][b, t]] if index < 0 else features[b, index]
        )


def test_rows_without_crops(params, batch):
    """No crops, none in the key's array, or no key: all embed the tokens alone."""
    hidden = jax.jit(lambda batch: MODULE.apply({"params": params}, batch, method="hidden"))
    plain = batch | {"image_feature_index": np.full((2, T), -1, np.int32)}
    expected = hidden(plain)
    np.testing.assert_array_equal(hidden(plain | {"crops": batch["crops"][:, :0]}), expected)
    np.testing.assert_array_equal(hidden(without(plain, "crops", "image_feature_index")), expected)


def test_logits_are_float32_of_hidden(params, batch):
    module = UniTokenModel(MODEL, jnp.bfloat16)

    @jax.jit
    def run(batch):
        return module.apply({"params": params}, batch), module.apply(
            {"params": params}, batch, method="hidden"
        )

    logits, hidden = run(batch)
    assert logits.shape == (2, T, DECODER.vocab_size)
    assert logits.dtype == jnp.float32
    assert hidden.dtype == jnp.bfloat16
    exact = np.asarray(hidden, np.float32) @ params["decoder"]["lm_head"]["kernel"]
    np.testing.assert_allclose(logits, exact, atol=0.1)


def test_prefill_with_features_is_the_full_forward(params, batch):
    @jax.jit
    def run(batch):
        features = MODULE.apply({"params": params}, batch["crops"], method="features")
        prefilled, _ = MODULE.apply(
            {"params": params},
            batch["tokens"],
            batch["positions"],
            init_cache(DECODER, 2, T + 3),
            batch["image_feature_index"],
            features,
            method="extend",
        )
        return prefilled, MODULE.apply({"params": params}, batch, method="hidden")

    prefilled, full = run(batch)
    np.testing.assert_allclose(prefilled, full, atol=2e-5)


@pytest.fixture(scope="module")
def online(batch):
    """The batch with two images a row to encode: four codes each, some used, one beyond the labels."""
    index = np.array([[-1, 0, 1, 2, 3, -1, 7, -1], [4, -1, -1, 6, 0, 0, -1, -1]], np.int32)
    labels = np.array([[-1, 1, 1, -1, 1, 5, 1, -1], [1, -1, 6, -1, 1, 1, -1, -1]], np.int32)
    images = np.random.default_rng(3).integers(0, 256, (2, 2, 4, 4, 3), np.uint8)
    return batch | {"code_index": index, "labels": labels, "images": images}


def test_inserts_vq_tokens(params, online):
    code_ids = np.random.default_rng(4).permutation(VQ.codes).astype(np.int32) + 20
    filled = jax.jit(lambda batch: insert_vq_tokens(params, MODEL, code_ids, batch))(online)
    vq = VQModel(VQ)
    images = online["images"].reshape(4, 4, 4, 3)
    latents = vq.apply({"params": params["vqgan"]}, images, method="encode")
    codes = np.asarray(vq.apply({"params": params["vqgan"]}, latents, method="quantize")[1])
    np.testing.assert_array_equal(vq.apply({"params": params["vqgan"]}, images, method="tokenize"), codes)
    codes = codes.reshape(2, 8)
    assert len(np.unique(codes)) > 3
    for b, t in np.ndindex(2, T):
        index = online["code_index"][b, t]
        here = code_ids[codes[b, index]]
        old = online["tokens"][b, t], online["labels"][b, t]
        expected = old if index < 0 else (here, here if old[1] != -1 else -1)
        assert (filled["tokens"][b, t], filled["labels"][b, t]) == expected
    assert set(filled) == set(online) - {"images", "code_index"}
    on_host = insert_codes(online["tokens"], online["labels"], online["code_index"], codes, code_ids)
    for name, rows in zip(("tokens", "labels"), on_host):
        assert isinstance(rows, np.ndarray)
        np.testing.assert_array_equal(rows, filled[name])


def test_inserting_codes_leaves_other_batches(params, batch, online):
    assert insert_vq_tokens(params, MODEL, np.arange(VQ.codes), batch) is batch
    empty = insert_vq_tokens(params, MODEL, np.arange(VQ.codes), online | {"images": online["images"][:, :0]})
    np.testing.assert_array_equal(empty["tokens"], online["tokens"])
    assert "images" not in empty
    with pytest.raises(ValueError, match="insert_vq_tokens"):
        MODULE.apply({"params": params}, online, method="hidden")


def test_random_parameters(params):
    """Sizes at the start, the same for a seed, and independent of what else is made."""
    first = init_params(MODEL, seed=3)
    again = init_params(dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, depth=1)), seed=3)
    assert jax.tree.structure(first) == jax.tree.structure(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(
        first["siglip"]["patch_embed"]["kernel"], again["siglip"]["patch_embed"]["kernel"]
    )
    for a, b in zip(jax.tree.leaves(first["vqgan"]), jax.tree.leaves(init_vqgan(VQ, seed=3))):
        np.testing.assert_array_equal(a, b)
    layers = first["decoder"]["layers"]
    assert np.std(layers["attention"]["q"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(layers["mlp"]["down"]["kernel"]) == pytest.approx(
        0.01, rel=0.05
    )  # 0.02 / sqrt(2 * 2 layers)
    assert np.abs(layers["mlp"]["down"]["kernel"][0] - layers["mlp"]["down"]["kernel"][1]).min() > 0
    assert (np.asarray(layers["attention"]["q_norm"]["scale"]) == 1).all()
    q, gate, up = (
        layers["attention"]["q"]["kernel"],
        layers["mlp"]["gate"]["kernel"],
        layers["mlp"]["up"]["kernel"],
    )
    assert np.abs(gate - up).max() > 0.01  # of one shape, yet not the same numbers
    assert np.abs(q[0] - q[1]).max() > 0.01
    assert not first["siglip"]["layers"]["up"]["bias"].any()
    other = init_params(MODEL, seed=4)["decoder"]["lm_head"]["kernel"]
    assert np.abs(first["decoder"]["lm_head"]["kernel"] - other).max() > 0.01


def test_parameters_match_what_linen_makes(params, batch):
    """abstract_params and a plain module.init agree, so no parameter is forgotten."""
    made = jax.eval_shape(MODULE.init, jax.random.key(0), batch)["params"]
    assert jax.tree.structure(nn.meta.unbox(made)) == jax.tree.structure(
        {name: value for name, value in params.items() if name != "vqgan"}
    )
