"""The attention weights that are shown are those that the decoder used."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import noise, tiny_model
from unitoken_jax.inspection.attention import attention_weights, example_of
from unitoken_jax.inspection.show import CONTINUOUS, DISCRETE, token_kinds
from unitoken_jax.model.decoder import DecoderBlock
from unitoken_jax.model.layers import rope_table
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import make_conversation


def test_weights_times_values_are_what_the_first_layer_makes():
    model = tiny_model()
    example = example_of(model, [noise(0), "what is this?"], ["noise"])
    assert {CONTINUOUS, DISCRETE} < set(token_kinds(example, model.tokenizer))
    weights = attention_weights(model, example)
    config, T = model.config.decoder, len(example.tokens)
    assert weights.shape == (config.depth, config.heads, T, T)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.triu(weights, 1).any()

    params = model.params["decoder"]["layers"]["0"]
    positions = jnp.arange(T)[None]
    rope = rope_table(positions, config.head_dim, config.rope_theta)
    features = model.module.apply({"params": model.params}, example.crops[None], method="features")
    x = model.module.apply(
        {"params": model.params},
        example.tokens[None],
        example.image_feature_index[None],
        features,
        method="embed",
    )
    _, seen = DecoderBlock(config).apply(
        {"params": params},
        x,
        rope,
        jnp.ones_like(positions),
        positions,
        True,
        capture_intermediates=True,
    )
    seen = seen["intermediates"]["attention"]
    v = seen["v"]["__call__"][0].reshape(T, config.kv_heads, -1)
    v = jnp.repeat(v, config.heads // config.kv_heads, axis=1)
    mixed = jnp.einsum("nts,snh->tnh", weights[0], v).reshape(T, -1)
    made = mixed @ params["attention"]["o"]["kernel"]
    np.testing.assert_allclose(made, seen["o"]["__call__"][0][0], atol=1e-5)


def test_codes_left_to_the_device_are_refused():
    model = tiny_model()
    example = build.build_example(
        make_conversation([[noise(0), "what?"], ["noise"]]), model.tokenizer, model.config
    )
    with pytest.raises(ValueError, match="not filled in"):
        attention_weights(model, example)
