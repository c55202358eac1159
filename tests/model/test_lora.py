"""LoRA pairs: nothing at the start, the merged kernel afterwards, whatever computes with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import meta

from tests.helpers.tiny_model import CONFIG, tiny_params
from unitoken_jax.config import LoraConfig
from unitoken_jax.model.decoder import unstack_layers
from unitoken_jax.model.flops import trained_networks
from unitoken_jax.model.init import abstract_params, init_lora
from unitoken_jax.model.layers import Dense
from unitoken_jax.model.lora import CONSTANTS, PAIR, merge_trees, target_kernels
from unitoken_jax.model.quantize import quantize_layer
from unitoken_jax.model.unitoken import UniTokenModel

EVERYWHERE = LoraConfig(rank=3, alpha=5.0, targets="")


def with_pairs(lora: LoraConfig, seed: int | None) -> dict:
    """The tiny model's parameters and pairs, whose B are random where there is a seed."""
    pairs = init_lora(CONFIG, lora)
    if seed is not None:
        rng = np.random.default_rng(seed)
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)
                if path[-1].key == "lora_b"
                else leaf
            ),
            pairs,
        )
    return merge_trees(tiny_params(), pairs)


def merged(params: dict, scale: float) -> dict:
    """The tree without pairs, their products added to the kernels in float64."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in [path for path in flat if path.endswith("lora_a")]:
        module = path.removesuffix("lora_a")
        product = np.asarray(flat[path], np.float64) @ np.asarray(flat[module + "lora_b"], np.float64)
        flat[module + "kernel"] = (flat[module + "kernel"] + scale * product).astype(np.float32)
    kept = {path: leaf for path, leaf in flat.items() if not (PAIR.search(path) or CONSTANTS.search(path))}
    return traverse_util.unflatten_dict(kept, sep="/")


@functools.cache
def batch() -> dict:
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(3, 60, (2, 12)).astype(np.int32),
        "segments": np.ones((2, 12), np.int32),
        "positions": np.repeat([np.arange(12)], 2, 0).astype(np.int32),
        "image_feature_index": np.where(np.arange(12) // 4 == 1, np.arange(12) - 4, -1)[None].repeat(2, 0),
        "crops": rng.integers(0, 256, (2, 1, 16, 16, 3)).astype(np.uint8),
    }


def forward(params: dict, **settings) -> np.ndarray:
    network = {name: params[name] for name in ("siglip", "adapter", "decoder")}
    return np.asarray(UniTokenModel(CONFIG, **settings).apply({"params": network}, batch(), method="hidden"))


def decoded(params: dict) -> np.ndarray:
    """The hidden states of the same tokens, read through the cache, five at first and then the rest."""
    model = UniTokenModel(CONFIG)
    network = {name: params[name] for name in ("siglip", "adapter", "decoder")}
    network["decoder"] = unstack_layers(network["decoder"])
    apply = functools.partial(model.apply, {"params": network})
    features = apply(batch()["crops"], method="features")
    cache, hidden = model.init_cache(2, 12), []
    for part in (slice(0, 5), slice(5, 12)):
        tokens, positions, index = (
            batch()[name][:, part] for name in ("tokens", "positions", "image_feature_index")
        )
        piece, cache = apply(tokens, positions, cache, index, features, method="extend")
        hidden.append(np.asarray(piece))
    return np.concatenate(hidden, axis=1)


def test_pairs_change_nothing_before_they_are_trained():
    np.testing.assert_array_equal(forward(with_pairs(EVERYWHERE, None)), forward(tiny_params()))


@pytest.mark.parametrize("rslora", [False, True])
def test_pairs_are_the_merged_kernel(rslora):
    """Scanned and unrolled, with each remat policy, and in decoding; alpha is not the rank."""
    lora = dataclasses.replace(EVERYWHERE, rslora=rslora)
    params = with_pairs(lora, 1)
    scale = 5.0 / 3**0.5 if rslora else 5.0 / 3
    expected = forward(merged(params, scale))
    assert np.abs(expected - forward(tiny_params())).max() > 0.1
    np.testing.assert_allclose(forward(params), expected, atol=1e-5)
    np.testing.assert_allclose(forward(params, scan=False, remat="dots"), expected, atol=1e-5)
    np.testing.assert_allclose(decoded(params), expected, atol=1e-5)


def test_dropout_is_of_the_pair_alone_and_needs_an_rng():
    params = with_pairs(dataclasses.replace(EVERYWHERE, dropout=0.5), 1)["adapter"]["up"]
    dense, x = Dense(32, ("embed", None), True), jnp.ones((4, 16))
    apply = functools.partial(dense.apply, {"params": params}, x)
    still, one, other = apply(), *(apply(rngs={"dropout": jax.random.key(i)}) for i in range(2))
    base = x @ params["kernel"] + params["bias"]
    assert not np.allclose(one, other)
    # Dropped numbers are made up for: the mean over many rows is the product itself.
    many = dense.apply({"params": params}, jnp.ones((20000, 16)), rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(many.mean(0) - base[0], (still - base)[0], atol=0.05)


def test_a_quantized_kernel_hands_gradients_on():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(256, 8)).astype(np.float32), rng.normal(size=(3, 256)).astype(np.float32)
    for bits in (8, 4):
        quantized = jax.tree.map(jnp.asarray, quantize_layer(kernel, bits))
        whole = np.asarray(quantized.values, np.float32).reshape(len(quantized.scales), -1, 8)
        whole = (whole * np.asarray(quantized.scales)[:, None]).reshape(256, 8)
        cotangent = rng.normal(size=(3, 8)).astype(np.float32)
        found = jax.grad(lambda x, q=quantized, c=cotangent: jnp.vdot(q.product(x), c))(x)
        np.testing.assert_allclose(found, cotangent @ whole.T, atol=1e-4)
        product, _ = jax.vjp(lambda x, q=quantized: q.product(x, ("embed", "mlp")), x)
        np.testing.assert_allclose(product, x @ whole, atol=1e-4)


def test_a_seed_and_a_path_say_what_a_pair_begins_with():
    whole = traverse_util.flatten_dict(init_lora(CONFIG, EVERYWHERE, seed=2), sep="/")
    part = traverse_util.flatten_dict(
        init_lora(CONFIG, dataclasses.replace(EVERYWHERE, targets="mlp/up"), seed=2), sep="/"
    )
    assert set(part) == {f"decoder/layers/mlp/up/lora_{name}" for name in ("a", "b", "scale")}
    for path, value in part.items():
        np.testing.assert_array_equal(value, whole[path])
    assert np.std(whole["decoder/layers/mlp/down/lora_a"]) == pytest.approx(48**-0.5 / 3**0.5, rel=0.2)
    assert not np.any(whole["adapter/up/lora_b"])
    pairs = {path for path in part if PAIR.search(path)}
    assert trained_networks({*pairs, "siglip/norm/scale"}) == {"decoder/lora", "siglip"}


@pytest.mark.parametrize(
    ("targets", "problem"),
    [("(", "no regular expression"), ("^vqgan", "finds no kernel")],
)
def test_targets_that_cannot_be(targets, problem):
    paths = traverse_util.flatten_dict(meta.unbox(abstract_params(CONFIG)), sep="/")
    with pytest.raises(ValueError, match=problem):
        target_kernels(paths, LoraConfig(rank=2, targets=targets))
