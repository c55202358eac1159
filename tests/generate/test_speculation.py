"""Speculation is lossless: the same tokens as plain decoding, and the distribution that it should have."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.helpers import compiles
from tests.helpers.tiny_model import tiny_model
from unitoken_jax.config import DecoderConfig
from unitoken_jax.generate import decode
from unitoken_jax.generate.sampling import sample_keys
from unitoken_jax.model.decoder import init_cache
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

V, NEW_LINE, GUIDANCE, TOP_K, TEMPERATURE = 4, 4, 1.7, 3, 0.8
FORCED = np.array([MODEL_CHOOSES, MODEL_CHOOSES, NEW_LINE] * 2, np.int32)
DRAWS = 120_000


class Chain:
    """A model whose next token depends on the prompt and the last two tokens, which it finds in its cache.

    V codes and a new-line; the logits are known, so every image's probability is.
    """

    config = types.SimpleNamespace(decoder=DecoderConfig(width=1, depth=1, heads=1, kv_heads=1))
    dtype = jnp.dtype("float32")

    def apply(self, variables, tokens, positions, cache, method, **_):
        rows = jnp.arange(len(tokens))[:, None]
        seen = cache.k[0].at[rows, 0, positions, 0].set(tokens.astype(jnp.float32), mode="drop")
        first, before = (seen[rows, 0, at, 0].astype(jnp.int32) for at in (0 * positions, positions - 1))
        hidden = variables["params"]["table"][first, before, tokens]
        return hidden, cache._replace(k=(seen,))

    def init_cache(self, rows, length):
        return init_cache(self.config.decoder, rows, length)


TABLE = np.random.default_rng(0).normal(size=(2, V + 1, V + 1, V)).astype(np.float32) * 1.5
PARAMS = {"table": TABLE, "decoder": {"lm_head": {"kernel": np.eye(V, dtype=np.float32)}}}


def _draw(window: int, seed: int, top_k: int = TOP_K):
    """(int32[DRAWS, 4] codes, passes) of the chain, conditional prompt [0, 0, 1], unconditional [1, 0, 1]."""
    sampling = decode.SamplingParams(
        top_k=np.int32(top_k),
        temperature=np.float32(TEMPERATURE),
        guidance=np.float32(GUIDANCE),
        forced=FORCED,
        ids=np.arange(V, dtype=np.int32),
        ends=np.zeros(0, np.int32),
        stride=np.int32(3),
    )
    tokens = np.repeat([[0, 0, 1], [1, 0, 1]], DRAWS, axis=0).astype(np.int32)
    prompts = decode.Prompts(tokens, np.full(2 * DRAWS, 3, np.int32), None, None)
    keys, limits = sample_keys(seed, np.arange(DRAWS)), np.full(DRAWS, 5, np.int32)
    spec, module = decode.DecodeSpec(window, guided=True), Chain()
    state = decode.prefill(module, PARAMS, prompts, keys, limits, sampling, slots=3 + len(FORCED), spec=spec)
    state, passes = decode.decode_loop(module, PARAMS, state, sampling, np.int32(1), np.int32(100), spec=spec)
    tokens = np.asarray(state.tokens)
    assert (tokens[:, 2] == NEW_LINE).all()
    return tokens[:, [0, 1, 3, 4]], int(passes)


def _probabilities() -> np.ndarray:
    """Of every image, in the order of its codes read as a number: the rule written out."""

    def chosen(before, last):
        cond, free = TABLE[0, before, last].astype(float), TABLE[1, before, last].astype(float)
        logits = free + GUIDANCE * (cond - free)
        weights = np.exp(logits / TEMPERATURE) * (logits >= np.sort(logits)[-TOP_K])
        return weights / weights.sum()

    found = []
    for a, b, c, d in itertools.product(range(V), repeat=4):
        pairs = [(0, 1), (1, a), (b, NEW_LINE), (NEW_LINE, c)]
        found.append(np.prod([chosen(*pair)[code] for pair, code in zip(pairs, (a, b, c, d))]))
    return np.array(found)


def _counts(codes: np.ndarray) -> np.ndarray:
    return np.bincount(codes @ V ** np.arange(4)[::-1], minlength=V**4)


def _p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square's; outcomes expected fewer than five times are one."""
    rare = expected < 5
    fold = lambda x: np.append(x[~rare], x[rare].sum())  # noqa: E731
    counts, expected = fold(counts), fold(expected)
    assert not counts[expected == 0].any()
    return stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


@pytest.mark.slow
def test_the_distribution_is_plain_samplings():
    plain, passes = _draw(1, seed=1)
    assert passes == 3
    expected = _probabilities() * DRAWS
    assert _p_value(_counts(plain), expected) > 1e-3
    codes, _ = _draw(2, seed=2)
    assert _p_value(_counts(codes), expected) > 1e-3
    both = np.stack([_counts(plain), _counts(codes)])
    assert stats.chi2_contingency(both[:, both.sum(0) >= 10]).pvalue > 1e-3
    np.testing.assert_array_equal(_draw(6, seed=1)[0], plain)


@pytest.mark.parametrize(
    ("window", "settings"),
    [
        (3, {"top_k": 1}),
        (3, {"seed": 5}),
        (40, {"temperature": 3.0}),
        pytest.param(3, {"guidance": 1.0, "number": 3, "size": (24, 16)}, marks=pytest.mark.slow),
    ],
)
def test_images_are_plain_decodings_token_by_token(window, settings):
    plain, drawn = (
        tiny_model().image_results(["a red circle"], speculate=w, **settings) for w in (0, window)
    )
    for one, other in zip(plain, drawn, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert drawn[0].timing.passes < plain[0].timing.passes


def test_right_drafts_are_settled_a_window_at_a_time():
    model = tiny_model()
    head = {"kernel": jnp.zeros_like(model.params["decoder"]["lm_head"]["kernel"])}
    constant = model.params | {"decoder": model.params["decoder"] | {"lm_head": head}}
    model = type(model)(model.config, constant, model.tokenizer)
    for window, passes in ((0, 15), (3, 6), (40, 1)):  # 15 codes and 3 new-lines follow the first code
        (drawing,) = model.image_results(["a"], top_k=1, speculate=window)
        assert drawing.timing.passes == passes


def test_settings_and_prompts_recompile_nothing():
    model = tiny_model()
    model.image_results(["a blue circle"], speculate=3)
    with compiles.counted() as found:
        model.image_results(["two green"], seed=7, guidance=2.0, top_k=3, temperature=0.7, speculate=3)
    assert not found
