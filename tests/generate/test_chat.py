"""Answers of text and images in turn, by a model whose next token follows from the last one."""

import itertools

import numpy as np
import pytest

from tests.helpers.tiny_model import CODES, noise, tiny_model, tiny_params
from unitoken_jax import UniToken
from unitoken_jax.generate import text
from unitoken_jax.generate.vq import encode_images
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import make_conversation

QUESTION = [noise(0), "what is this ?"]
BEFORE, AFTER = "a red circle", " and how many"


def _model(**variant):
    """It answers with BEFORE, an image of random codes, AFTER, whatever it is asked."""
    model = tiny_model(**variant)
    v, encode, decoder = model.tokenizer.vocabulary, model.tokenizer.encode, tiny_params()["decoder"]
    layers = {name: dict(branch) for name, branch in decoder["layers"].items()}
    for branch, last in (("attention", "o"), ("mlp", "down")):  # nothing but the last token counts
        layers[branch][last] = {"kernel": np.zeros_like(layers[branch][last]["kernel"])}
    table = np.random.default_rng(0).normal(size=decoder["embed"]["embedding"].shape).astype(np.float32)
    head = np.zeros_like(decoder["lm_head"]["kernel"])
    for path in (
        [v.end_of_turn, *encode(BEFORE), v.begin_of_image],
        [v.end_of_image, *encode(AFTER), v.end_of_turn],
    ):
        for one, following in itertools.pairwise(path):
            head[:, following] += table[one]
    own = {"layers": layers, "embed": {"embedding": table}, "lm_head": {"kernel": head}}
    own["norm"] = {"scale": np.ones_like(decoder["norm"]["scale"])}
    return UniToken(model.config, model.params | {"decoder": own}, model.tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [{}, {"features_in_answers": True}])
def test_text_image_text_as_training_would_build_it(variant, monkeypatch):
    model = _model(**variant)
    read, prompts = text.build_prompts, []
    monkeypatch.setattr(text, "build_prompts", lambda *a: prompts.append(read(*a)) or prompts[-1])
    (reply,) = model.chat([QUESTION])
    before, drawn, after = reply.parts
    assert (before, after, reply.complete) == (BEFORE, AFTER, True)
    assert drawn.image.size == (16, 16)
    assert drawn.codes.shape == (4, 4)
    assert drawn.codes.max() < CODES

    answered = make_conversation([QUESTION, [BEFORE, drawn, AFTER]])
    built = build.build_example(
        answered, model.tokenizer, model.config, lambda crop: encode_images(model, crop[None])[0]
    )
    (read_last,) = next(found for found in reversed(prompts) if found)
    length = len(read_last.tokens)  # all up to the image's end
    np.testing.assert_array_equal(read_last.tokens, built.tokens[:length])
    np.testing.assert_array_equal(read_last.image_feature_index, built.image_feature_index[:length])
    np.testing.assert_array_equal(read_last.crops, built.crops)
    assert model.tokenizer.decode(built.tokens[length:]) == AFTER
    assert reply.tokens.tolist()[-len(model.tokenizer.encode(AFTER)) :] == model.tokenizer.encode(AFTER)


@pytest.mark.slow
def test_a_reply_is_the_same_alone_or_in_a_batch_and_can_be_gone_on_with():
    """Slow, since each batch size has programs of its own."""
    model = _model()
    asked = [QUESTION, ["what ?"], [noise(1), noise(2), "how many ?"]]
    together = model.chat(asked, seed=3)
    for one, reply in zip(asked, together):
        (alone,) = model.chat([one], seed=3)
        np.testing.assert_array_equal(alone.tokens, reply.tokens)
    assert len({reply.tokens.tobytes() for reply in together}) == 3
    (second,) = model.chat([make_conversation([QUESTION, together[0].parts, "and there ?"])])
    assert second.text == BEFORE + AFTER


def test_draws_begins_with_an_image_and_limits_hold():
    model = _model()
    (reply,) = model.chat([QUESTION], draws=True, drawing={"size": (8, 24)})
    assert [type(part).__name__ for part in reply.parts] == ["GeneratedImage", "str"]
    assert reply.images[0].size == (24, 8)
    (reply,) = model.chat([QUESTION], max_images=0)
    assert (reply.parts, reply.complete) == ((BEFORE,), False)
    (reply,) = model.chat([QUESTION], max_tokens=2)
    assert (len(reply.tokens), reply.complete) == (2, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conversations": "what ?"}, "expected a list"),
        ({"drawing": {"guidence": 3.0}}, "no setting 'guidence'"),
        ({"drawing": {"temperature": float("nan")}}, "temperature is nan"),
        ({"draws": True, "max_images": 0}, "max_images is 0; expected 1 or more"),
    ],
)
def test_bad_requests(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().chat(**{"conversations": [["what ?"]]} | settings)
