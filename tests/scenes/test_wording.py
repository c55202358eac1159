"""How questions are put: character for character as the benchmarks put them, and the answer stays right."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.helpers.scene_answers import plain, right_answer, without_benchmark_words
from tests.scenes.test_questions import RANDOMS, SCENES
from unitoken_jax.evaluate.understanding.matching import match_option, match_yes_no
from unitoken_jax.evaluate.understanding.prompts import TEMPLATES, choice_text, short_text
from unitoken_jax.scenes import questions
from unitoken_jax.scenes.questions import NOTHING, Question
from unitoken_jax.scenes.wording import in_benchmark_words, multiple_choice, options_for, vary_wording

KINDS = st.sampled_from(list(questions.QUESTIONS))


def asked(scene, kind, rng):
    """A question that the scene gives."""
    question = questions.ask(scene, kind, rng)
    assume(question is not None)
    return question


@given(SCENES, KINDS, RANDOMS)
def test_other_letters_and_marks_leave_the_question(scene, kind, rng):
    question = asked(scene, kind, rng)
    varied = {vary_wording(question.text, rng) for _ in range(20)}
    assert {plain(text) for text in varied} == {plain(question.text)}


def test_wordings_vary():
    rng = random.Random(0)
    assert {vary_wording("is it?", rng) for _ in range(200)} == {"is it?", "Is it?", "is it", "Is it"}
    assert {vary_wording("count it", rng) for _ in range(200)} == {
        "count it",
        "Count it",
        "count it.",
        "Count it.",
    }


@given(SCENES, KINDS, RANDOMS)
def test_options_hold_the_true_answer_once(scene, kind, rng):
    question = asked(scene, kind, rng)
    options = options_for(question, rng)
    if options is None:
        assert kind in questions.CAPTIONS or question.answer == NOTHING or kind == "digits"
        return
    assert 2 <= len(options) <= 4
    assert options.count(question.answer) == 1
    assert len(set(options)) == len(options)


def test_the_true_option_is_at_every_letter():
    rng = random.Random(1)
    question = Question("colour", "what colour is the circle?", "red")
    places = [options_for(question, rng).index("red") for _ in range(400)]
    assert all(70 < places.count(place) < 130 for place in range(4))


@pytest.mark.parametrize(("name", "letter_only"), [("vlmevalkit", False), ("direct", True)])
@given(scene=SCENES, kind=KINDS, rng=RANDOMS)
def test_multiple_choice_is_put_as_evaluate_puts_it(name, letter_only, scene, kind, rng):
    question = asked(scene, kind, rng)
    options = options_for(question, rng)
    assume(options is not None)
    row = {"question": question.text} | dict(zip("ABCD", options))
    chosen = multiple_choice(question, options, letter_only)
    assert chosen.text == choice_text(row, TEMPLATES[name])
    assert (chosen.kind, row[chosen.answer]) == (question.kind, question.answer)
    assert match_option(chosen.answer, dict(zip("ABCD", options))) == chosen.answer


@given(SCENES, KINDS, RANDOMS)
def test_benchmark_words_are_those_of_evaluate_and_of_mme(scene, kind, rng):
    question = asked(scene, kind, rng)
    row = {"question": question.text}
    for _ in range(8):
        put = in_benchmark_words(question, rng)
        if kind in questions.CAPTIONS or question.answer == NOTHING:
            assert put == question
        elif "Options:" in put.text:
            assert put.text.startswith(f"Question: {question.text}\nOptions:\nA. ")
        elif put.text.endswith("yes or no."):
            assert put.text == f"{question.text} Please answer yes or no."  # as in MME's own file
            assert match_yes_no(put.answer).lower() == question.answer
        else:
            assert put.text == short_text(row, TEMPLATES["direct"])
            assert put.answer == question.answer
        plain_text, answer = without_benchmark_words(put.text, put.answer)
        assert (plain_text, answer) == (question.text, question.answer)
        assert answer == right_answer(plain_text, scene)


def test_every_way_of_asking_occurs():
    rng = random.Random(2)
    question = Question("exists", "is there a red circle?", "yes")
    texts = [in_benchmark_words(question, rng).text for _ in range(300)]
    for words in ("yes or no.", "options above. \n", "choices directly.", "word or phrase."):
        assert sum(words in text for text in texts) >= 10
