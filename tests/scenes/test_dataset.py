"""The quickstart's data set: questions are right and unguessable, files are complete, splits do not leak."""

import collections
import dataclasses
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from unitoken_jax.scenes import questions
from unitoken_jax.scenes.dataset import IMAGE, DatasetSettings, write_dataset
from unitoken_jax.scenes.prompts import (
    CATEGORIES,
    SCENE,
    RequiredObject,
    Requirement,
    random_pair,
    random_prompt,
)
from unitoken_jax.scenes.scene import KINDS, SceneObject, random_scene, scene_split
from unitoken_jax.sequence.conversation_file import read_conversations

SMALL = DatasetSettings(
    seed=3,
    train_captions=30,
    train_understanding=60,
    train_generation=60,
    train_instruct=40,
    questions_per_kind=6,
    prompts_per_category=10,
)
SCENES = (
    SceneObject(0, "circle", "red"),
    SceneObject(5, "7", "blue"),
    SceneObject(6, "square", "red"),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("quickstart") / "data", SMALL)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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
        questions.caption(SCENES)
        == "a red circle top left and a blue 7 middle right and a red square bottom left"
    )
    assert all_texts("colour", SCENES)["what colour is the digit?"] == "blue"
    assert all_texts("colour", SCENES)["what colour is the object at the bottom left?"] == "red"
    shape = all_texts("shape", SCENES)
    assert shape["what shape is at the bottom left?"] == "square"
    assert not any("red" in text for text in shape)  # two red shapes: ambiguous
    count = all_texts("count", SCENES, 3000)
    assert count["how many red objects are there?"] == "two"
    assert count["count the digits"] == "one"
    assert count["count the crosses"] == "zero"
    assert count["how many objects do you see?"] == "three"
    position = all_texts("position", SCENES)
    assert position["where is the blue object?"] == "middle right"
    assert "where is the red object?" not in position
    relation = all_texts("relation", SCENES, 2000)
    assert relation["is the circle left of the digit?"] == "yes"
    assert relation["is the circle below the square?"] == "no"
    assert relation["is the digit left or right of the square?"] == "right"
    assert "is the circle left or right of the square?" not in relation  # one column
    assert all_texts("exists", SCENES, 2000)["is there a blue circle?"] == "no"
    assert all_texts("digits", SCENES)["read the digits"] == "7"
    assert all_texts("digit by place", SCENES)["which digit is at the middle right?"] == "7"
    assert all_texts("digit by colour", SCENES)["read the blue digit"] == "7"
    assert all_texts("caption", SCENES) == {}
    assert set(all_texts("read caption", SCENES).values()) == {questions.caption(SCENES)}


def test_every_question_has_one_answer():
    rng = random.Random(1)
    for _ in range(60):
        scene = random_scene(rng, "train")
        for kind in questions.QUESTIONS:
            all_texts(kind, scene, 40)


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


@pytest.mark.parametrize("category", [*CATEGORIES, SCENE])
def test_prompts_come_with_a_scene_of_exactly_what_they_name(category):
    rng = random.Random(4)
    for _ in range(100):
        requirement, scene = random_pair(category, rng, "train")
        assert scene_split(scene) == "train"
        assert len(scene) == sum(item.count for item in requirement.include)
        for item in requirement.include:
            if item.colour:
                assert item.colour in requirement.prompt
                assert sum(thing.colour == item.colour for thing in scene) >= item.count
        assert Requirement.from_json(json.loads(json.dumps(requirement.to_json()))) == requirement


def test_prompt_split_ignores_the_wording():
    def requirement(first, second, relation=None):
        include = (
            RequiredObject(first, relation=relation, other=1 if relation else 0),
            RequiredObject(second),
        )
        return Requirement("position" if relation else "two", "", include)

    shapes = KINDS
    pairs = [(a, b) for a in shapes for b in shapes if a != b]
    assert all(requirement(a, b).split() == requirement(b, a).split() for a, b in pairs)
    assert all(requirement(a, b, "above").split() == requirement(b, a, "below").split() for a, b in pairs)
    assert any(requirement(a, b, "above").split() != requirement(b, a, "above").split() for a, b in pairs)


def test_held_out_prompts_never_occur_in_training():
    rng = random.Random(5)
    for category in ("two", "counting", "position", "attribution"):
        held_out = {random_prompt(category, rng, "held_out").prompt for _ in range(200)}
        train = {random_prompt(category, rng, "train").prompt for _ in range(400)}
        assert held_out
        assert not held_out & train


def test_scene_for_an_impossible_split():
    from unitoken_jax.scenes.prompts import scene_for

    requirement = Requirement("position", "", (RequiredObject("circle", relation="left of", other=0),))
    with pytest.raises(ValueError, match="no scene of split 'train'"):
        scene_for(requirement, random.Random(0), "train")


def test_files_are_the_public_format(small):
    for path, number in (
        (small.train_captions, SMALL.train_captions),
        (small.train_understanding, SMALL.train_understanding),
        (small.train_generation, SMALL.train_generation),
        (small.train_instruct, SMALL.train_instruct),
    ):
        found = read_conversations(path)
        assert len(found) == number
        for conversation in found:
            assert len(conversation.images) == 1
            with Image.open(conversation.images[0].path) as image:
                assert image.size == (24, 24)
                assert image.mode == "RGB"
    assert len(small.train_images()) == 190


def test_captions_name_every_object(small):
    for line in small.train_captions.open():
        _, answer = json.loads(line)["conversations"]
        assert re.fullmatch(r"an? \w+ \w+ [a-z ]+( and an? \w+ \w+ [a-z ]+){0,2}", answer["value"])


def test_images_come_first_in_most_conversations(tmp_path):
    settings = dataclasses.replace(
        SMALL, train_captions=1, train_understanding=400, train_generation=1, train_instruct=1
    )
    rows = [json.loads(line) for line in write_dataset(tmp_path / "d", settings).train_understanding.open()]
    first = [row["conversations"][0]["value"].startswith(IMAGE) for row in rows]
    assert 0.78 < np.mean(first) < 0.92
    turns = [len(row["conversations"]) // 2 for row in rows]
    assert max(turns) == 9
    for row in rows:
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert not any(answer.startswith(("a ", "an ")) for answer in answers[:-1])  # a caption comes last


def test_words_are_few(small):
    words = {word for text in small.train_texts() for word in text.replace("?", " ").split()}
    assert len(words) < 90
    assert not any(IMAGE in word for word in words)


def test_held_out(small):
    rows = small.held_out_questions()
    assert collections.Counter(row["kind"] for row in rows) == dict.fromkeys(questions.QUESTIONS, 6)
    assert {row["set"] for row in rows} == {"general", "textread"}
    assert all((small.root / row["image"]).is_file() for row in rows)
    assert len(small.held_out_images()) == len(rows)
    prompts = small.held_out_prompts()
    assert collections.Counter(prompt.category for prompt in prompts) == dict.fromkeys(CATEGORIES, 10)
    train = {path.read_bytes() for path in small.train_images()}
    assert not any(path.read_bytes() in train for path in small.held_out_images())


def test_equal_settings_give_equal_bytes_and_more_only_adds(small, tmp_path):
    assert contents(write_dataset(tmp_path / "again", SMALL).root) == contents(small.root)
    more = write_dataset(tmp_path / "more", dataclasses.replace(SMALL, train_generation=70))
    lines = small.train_generation.read_text().splitlines()
    assert more.train_generation.read_text().splitlines()[: len(lines)] == lines
    assert more.train_understanding.read_bytes() == small.train_understanding.read_bytes()
    other = write_dataset(tmp_path / "other", dataclasses.replace(SMALL, seed=4))
    assert other.train_generation.read_bytes() != small.train_generation.read_bytes()


def test_a_complete_data_set_is_left_alone(small):
    before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*")}
    assert write_dataset(small.root, SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*")} == before


def test_progress(tmp_path):
    seen = []
    write_dataset(tmp_path / "data", SMALL, lambda done, total: seen.append((done, total)))
    assert seen == [(number, 256) for number in range(1, 257)]


def test_another_data_set_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"seed 3 \(wanted 9\)"):
        write_dataset(small.root, dataclasses.replace(SMALL, seed=9))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        write_dataset(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(ValueError, match="is a file"):
        write_dataset(tmp_path / "mine.txt", SMALL)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        write_dataset(broken, SMALL)


def test_nothing_half_written(tmp_path):
    def fail(done, total):
        if done == total:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "data", SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []


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
