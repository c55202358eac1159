"""Answers: alone and in a batch, with and without images."""

import numpy as np
import pytest

from tests.helpers import compiles
from tests.helpers.tiny_model import noise, tiny_model
from unitoken_jax.generate import scheduler, text
from unitoken_jax.sequence.conversation import make_conversation

ASKED = [
    ["what is this ?"],
    [noise(0), "what is this ?"],
    [noise(1, 40, 16), "how many are there ?", noise(2, 16, 50), "and there ?"],
    ["how many red and blue circles are left of the green square ?"],
    [noise(0), "a"],
]


def _tokens(answers):
    return [answer.tokens.tolist() for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        {},
        pytest.param({"encoding": "discrete"}, marks=pytest.mark.slow),
        pytest.param({"encoding": "continuous", "resolution": "base"}, marks=pytest.mark.slow),
    ],
)
def test_ragged_batch_equals_each_alone(variant):
    model = tiny_model(**variant)
    together = _tokens(model.text_results(ASKED))
    assert together == [_tokens(model.text_results([asked]))[0] for asked in ASKED]
    if variant:
        assert together == _tokens(model.text_results(ASKED, batch=2))
    assert len({tuple(tokens) for tokens in together}) == len(ASKED)


def test_images_matter():
    model = tiny_model()
    answers = _tokens(model.text_results([[noise(seed), "what is this ?"] for seed in range(3)]))
    assert len({tuple(tokens) for tokens in answers}) == 3


def test_answers_are_text_in_order_and_limited():
    model = tiny_model()
    replies = model.text_results(ASKED, max_tokens=5)
    assert replies[0].timing.passes == 4  # reading the prompts gives the first token
    assert all(len(reply.tokens) <= 5 for reply in replies)
    assert [reply.text for reply in replies] == model.answer(ASKED, max_tokens=5)
    longer = model.text_results(ASKED)
    assert all(
        one.tokens.tolist() == more.tokens[:5].tolist()
        for one, more in zip(replies, longer)
        if not one.complete
    )


def test_what_is_written_becomes_an_answer():
    model = tiny_model()
    session = scheduler.DecodeSession(model)
    vocabulary, hello = model.tokenizer.vocabulary, model.tokenizer.encode("a red circle")
    ended = text._text_result(session, np.array([*hello, vocabulary.end_of_turn]))
    assert (ended.text, ended.tokens.tolist(), ended.complete) == ("a red circle", hello, True)
    cut = text._text_result(session, np.array([*hello, vocabulary.sep]))
    assert (cut.text, cut.tokens.tolist(), cut.complete) == ("a red circle", [*hello, vocabulary.sep], False)


def test_a_conversation_of_several_turns():
    model = tiny_model()
    whole = make_conversation([[noise(0), "what is this ?"], ["a red circle"], ["how many ?"]])
    assert _tokens(model.text_results([whole])) != _tokens(model.text_results([["how many ?"]]))


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_their_place():
    model = tiny_model()
    settings = {"temperature": 1.0, "seed": 4}
    together = _tokens(model.text_results(ASKED, **settings))
    assert together != _tokens(model.text_results(ASKED))
    assert _tokens(model.text_results(ASKED[::-1], **settings))[::-1] == together
    assert _tokens(model.text_results([ASKED[2]], **settings)) == [together[2]]
    twice = _tokens(model.text_results([ASKED[0], ASKED[0]], **settings))
    assert twice[0] == together[0] != twice[1]


def test_streamed_pieces_make_the_answers():
    model = tiny_model()
    expected = model.answer(ASKED)
    pieces = list(model.stream(ASKED))
    assert ["".join(piece for i, piece in pieces if i == n) for n in range(len(ASKED))] == expected
    assert len(pieces) > len(ASKED)


def test_nothing_recompiles_for_another_question_or_image():
    model = tiny_model()
    model.text_results([[noise(3), "what is this ?"]], max_tokens=9)
    with compiles.counted() as found:
        model.text_results([[noise(4), "how many ?"]], max_tokens=12)
    assert not found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("what ?", "expected a list"),
        (["what ?"], "conversation 0 is one string"),
        ([["fine"], [" "]], "conversation 1: empty question"),
        ([["<s>"]], "conversation 0: the text contains <s>"),
        ([["fine"], [3]], "conversation 1: a part is a int"),
    ],
)
def test_bad_conversations_are_named(asked, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().text_results(asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 401}, "top_k is 401; there are only 400"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().text_results([["what ?"]], **settings)


def test_an_unreadable_image_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"conversation 0: .*broken\.png"):
        tiny_model().text_results([[path, "what ?"]])


def test_no_conversations_no_answers():
    assert tiny_model().text_results([]) == []
    np.testing.assert_array_equal(tiny_model().image_results([]), [])
