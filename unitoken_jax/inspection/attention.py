"""Where the decoder looks: its attention weights over one sequence. For looking inside, not for speed."""

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.batch import NO_INDEX
from unitoken_jax.generate.vq import encode_example_images
from unitoken_jax.model.decoder import DecoderBlock
from unitoken_jax.model.layers import apply_rope, rope_table
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.sequence.example import Example


def example_of(model, *turns) -> Example:
    """The sequence that `model`, a `UniToken`, reads of a conversation, with its images' codes in it.

    `turns` are question, answer, question, ..., each a list of text and images.
    """
    example = build.build_example(make_conversation(list(turns)), model.tokenizer, model.config)
    (example,) = encode_example_images(model, [example], 1)
    return example


def attention_weights(model, example: Example) -> np.ndarray:
    """Attention weights float32[L, N, T, T] of `example`: of each layer and head, how much token t (axis 2)
    looks at token s (axis 3).

    All of them are in memory at one time: meant for a small model or a short sequence. ValueError where the
    codes of the example's images are not in its tokens (`example_of`).
    """
    if (example.code_index != NO_INDEX).any():
        raise ValueError("the example's codes are not filled in yet: see example_of")
    config, params = model.config.decoder, model.network_params["decoder"]
    positions = jnp.arange(len(example.tokens))[None]
    rope = rope_table(positions, config.head_dim, config.rope_theta)
    x = _embedded(model, example)
    block = DecoderBlock(config, model.module.dtype)
    weights = []
    for layer in range(config.depth):
        variables = {"params": params["layers"][str(layer)]}
        (x, _), captured = block.apply(
            variables,
            x,
            rope,
            jnp.ones_like(positions),
            positions,
            True,
            capture_intermediates=_is_query_or_key,
        )
        captured = captured["intermediates"]["attention"]
        q, k = (apply_rope(captured[name]["__call__"][0], rope)[0] for name in ("q_norm", "k_norm"))
        weights.append(_softmax(q, jnp.repeat(k, config.heads // config.kv_heads, axis=1)))
    return np.stack(weights)


def _embedded(model, example: Example) -> jax.Array:
    """Embeddings and features [1, T, D] of the example's tokens, as the decoder reads them."""

    def embed(module):
        features = module.features(example.crops[None]) if len(example.crops) else None
        return module.embed(example.tokens[None], example.image_feature_index[None], features)

    return model.module.apply({"params": model.network_params}, method=embed).astype(model.module.dtype)


def _is_query_or_key(module, _) -> bool:
    return module.name in ("q_norm", "k_norm")


def _softmax(q: jax.Array, k: jax.Array) -> np.ndarray:
    """[T, N, H] twice -> float32[N, T, T], causal."""
    scores = jnp.einsum("tnh,snh->nts", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[1:], bool))
    return np.asarray(jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1))
