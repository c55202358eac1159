"""Questions about a scene: each has one right answer, which its words alone do not give away."""

import collections
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.scene_answers import right_answer
from unitoken_jax.scenes import questions
from unitoken_jax.scenes.scene import COLOURS, KINDS, SceneObject, random_scene

SCENE = (
    SceneObject(0, "circle", "red"),
    SceneObject(5, "7", "blue"),
    SceneObject(6, "square", "red"),
)
OBJECTS = st.builds(SceneObject, st.integers(0, 8), st.sampled_from(KINDS), st.sampled_from(list(COLOURS)))
# Not st.randoms(): what draws again until it likes the outcome may never like that one's.
RANDOMS = st.integers(0, 2**32).map(random.Random)
SCENES = st.lists(OBJECTS, max_size=3, unique_by=lambda obj: obj.cell).map(lambda found: tuple(sorted(found)))


def all_texts(kind, scene, tries=300):
    """{question: answer} over many draws; fails where one question has two answers."""
    rng = random.Random(0)
    found = {}
    for _ in range(tries):
        if question := questions.ask(scene, kind, rng):
            assert found.setdefault(question.text, question.answer) == question.answer
    return found


def test_answers_by_hand():
    assert (
        questions.caption(SCENE)
        == "a red circle top left and a blue 7 middle right and a red square bottom left"
    )
    assert all_texts("colour", SCENE)["what colour is the digit?"] == "blue"
    assert all_texts("colour", SCENE)["what colour is the object at the bottom left?"] == "red"
    shape = all_texts("shape", SCENE)
    assert shape["what shape is at the bottom left?"] == "square"
    assert not any("red" in text for text in shape)  # two red shapes: ambiguous
    count = all_texts("count", SCENE, 3000)
    assert count["how many red objects are there?"] == "two"
    assert count["count the digits"] == "one"
    assert count["count the crosses"] == "zero"
    assert count["how many objects do you see?"] == "three"
    position = all_texts("position", SCENE)
    assert position["where is the blue object?"] == "middle right"
    assert "where is the red object?" not in position
    relation = all_texts("relation", SCENE, 2000)
    assert relation["is the circle left of the digit?"] == "yes"
    assert relation["is the circle below the square?"] == "no"
    assert relation["is the digit left or right of the square?"] == "right"
    assert "is the circle left or right of the square?" not in relation  # one column
    assert all_texts("exists", SCENE, 2000)["is there a blue circle?"] == "no"
    assert all_texts("digits", SCENE)["read the digits"] == "7"
    assert all_texts("digit by place", SCENE)["which digit is at the middle right?"] == "7"
    assert all_texts("digit by colour", SCENE)["read the blue digit"] == "7"
    assert all_texts("caption", SCENE) == {}
    assert set(all_texts("read caption", SCENE).values()) == {questions.caption(SCENE)}
    assert all_texts("nothing", SCENE) == {}


@given(SCENES, st.sampled_from(list(questions.QUESTIONS)), RANDOMS)
def test_every_question_has_the_right_answer(scene, kind, rng):
    """The answer that another program works out from the question's words."""
    for _ in range(12):
        if question := questions.ask(scene, kind, rng):
            assert question.answer == right_answer(question.text, scene), question


@pytest.mark.parametrize("kind", list(questions.QUESTIONS))
def test_every_kind_can_be_asked_about_some_scene(kind):
    rng = random.Random(1)
    scenes = [(), *(random_scene(rng, "train") for _ in range(60))]
    assert any(questions.ask(scene, kind, rng) for scene in scenes)


def test_an_empty_scene_is_asked_about_as_others_are_and_gets_only_true_answers():
    found = all_texts("nothing", (), 4000)
    assert set(found.values()) == {questions.NOTHING, "zero", "no"}
    assert {text: right_answer(text, ()) for text in found} == found
    assert found["describe the image"] == found["read the digits"] == questions.NOTHING
    assert found["how many circles are there?"] == "zero"
    assert found["is there a red digit?"] == "no"
    assert questions.caption(()) == questions.NOTHING
    assert [kind for kind in questions.QUESTIONS if all_texts(kind, ())] == ["nothing"]


def test_general_questions_never_name_a_digit():
    rng = random.Random(2)
    for _ in range(300):
        scene = random_scene(rng, "train")
        for kind in questions.GENERAL:
            if question := questions.ask(scene, kind, rng):
                assert not re.search(r"\d", question.text + question.answer), question
        for kind in questions.TEXTREAD:
            if question := questions.ask(scene, kind, rng):
                assert re.search(r"\d", question.answer), question


@pytest.mark.parametrize(
    ("kind", "most"), [("exists", 0.55), ("colour", 0.3), ("shape", 0.3), ("count", 0.55), ("position", 0.2)]
)
def test_a_question_alone_does_not_give_the_answer(kind, most):
    """The best guess from the question's words, with the scene unseen."""
    rng = random.Random(3)
    answers = collections.defaultdict(collections.Counter)
    for _ in range(4000):
        if question := questions.ask(random_scene(rng, "train"), kind, rng):
            words = question.text.split(" at the ")[0]  # so that each form is seen often
            answers[words][question.answer] += 1
    common = [counts for counts in answers.values() if counts.total() >= 40]
    assert common
    assert sum(max(counts.values()) for counts in common) / sum(counts.total() for counts in common) < most


def test_a_request_for_a_caption_has_many_wordings_of_the_same_meaning():
    rng = random.Random(4)
    texts = {questions.describe(rng) for _ in range(2000)}
    assert len(texts) > 30
    assert {"what do you see?", "describe the image", "what is this?"} < texts
    assert {right_answer(text, SCENE) for text in texts} == {questions.caption(SCENE)}


def test_scores():
    rows = [
        {"set": "general", "kind": "count", "answer": "two", "given": " Two. "},
        {"set": "general", "kind": "count", "answer": "two", "given": "three"},
        {"set": "textread", "kind": "digits", "answer": "3 1", "given": "31"},
    ]
    assert questions.score_answers(rows) == {
        "general": 0.5,
        "textread": 0.0,
        "kinds": {"count": 0.5, "digits": 0.0},
    }
    assert questions.majority_guess(rows) == {"count": 1.0, "digits": 1.0}
