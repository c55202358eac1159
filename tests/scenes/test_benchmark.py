"""The benchmarks in the package: what the command writes, with right answers, about held-out scenes."""

import base64
import collections
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.scene_answers import right_answer
from unitoken_jax.evaluate.drawing.scenes import DRAW_SCENES
from unitoken_jax.evaluate.understanding.prompts import options_of
from unitoken_jax.scenes import benchmark, questions
from unitoken_jax.scenes.benchmark_files import PROMPTS_FILE, QUESTIONS_FILE
from unitoken_jax.scenes.dataset import held_out_question
from unitoken_jax.scenes.prompts import CATEGORIES, Requirement
from unitoken_jax.scenes.scene import scene_split

csv.field_size_limit(2**31 - 1)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def pixels(row):
    data = base64.b64decode(row["image"], validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the folder of a run of the command's function, the scene of each question as it was drawn)."""
    out, scenes = tmp_path_factory.mktemp("benchmark"), []

    def noted(kind, rng):
        question, scene = held_out_question(kind, rng)
        scenes.append(scene)
        return question, scene

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "held_out_question", noted)
        benchmark.write_benchmarks(out)
    return out, scenes


def test_the_packaged_files_are_what_the_command_writes(written):
    """Texts to the letter, images but for what another libjpeg or numpy rounds otherwise."""
    out, _ = written
    assert (out / PROMPTS_FILE.name).read_bytes() == PROMPTS_FILE.read_bytes()
    for ours, packaged in zip(read(out / QUESTIONS_FILE.name), read(QUESTIONS_FILE), strict=True):
        assert {**ours, "image": ""} == {**packaged, "image": ""}
        first, second = pixels(ours), pixels(packaged)
        assert first.shape == second.shape
        assert np.abs(first - second).mean() < 0.5, ours["index"]


def test_questions_have_right_answers_and_every_kind_and_way_of_asking(written):
    _, scenes = written
    rows = read(QUESTIONS_FILE)
    assert len(rows) == len(scenes) == 200
    ways = collections.Counter()
    for row, scene in zip(rows, scenes):
        options, answer = options_of(row), row["answer"]
        way = "options" if options else "yes or no" if answer in ("Yes", "No") else "open"
        ways[way] += 1
        if options:
            assert len(set(options.values())) == len(options) >= 2
            answer = options[answer]
        question = row["question"].removesuffix(" Please answer yes or no.")
        assert (question != row["question"]) == (way == "yes or no")
        assert right_answer(question, scene) == answer.lower(), (row["index"], scene)
        assert not scene or scene_split(scene) == "held_out"
        kind = row["category"]
        assert row["l2-category"] == ("TextRead" if kind in questions.TEXTREAD else "General")
        if kind in questions.CAPTIONS:
            assert way == "open"
    kinds = collections.Counter(row["category"] for row in rows)
    assert set(kinds) == set(questions.QUESTIONS)
    assert set(kinds.values()) == {16, 17}
    assert ways["options"] > 90
    assert ways["yes or no"] >= 10
    assert sum(set(options_of(row).values()) == {"yes", "no"} for row in rows) >= 10
    letters = collections.Counter(row["answer"] for row in rows if options_of(row))
    assert max(letters.values()) <= 0.45 * ways["options"]  # always the same letter scores little


def test_the_file_is_small_and_its_images_are_those_of_people():
    rows = read(QUESTIONS_FILE)
    assert QUESTIONS_FILE.stat().st_size + PROMPTS_FILE.stat().st_size < 1_000_000
    images = [pixels(row) for row in rows]
    assert len({row["image"] for row in rows}) == 200
    assert all(100 <= min(image.shape[:2]) <= max(image.shape[:2]) <= 160 for image in images)
    grounds = np.array([np.median(image, axis=(0, 1)) for image in images])
    assert (grounds.min(axis=1) > 235).any()
    assert (grounds.max(axis=1) < 30).any()


def test_prompts_are_held_out_and_different():
    prompts = DRAW_SCENES.read(PROMPTS_FILE)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 60
    for number, prompt in enumerate(prompts):
        requirement = Requirement.from_json(json.loads(prompt.metadata[1]))
        assert (requirement.category, requirement.prompt) == (CATEGORIES[number // 10], prompt.text)
        assert requirement.split() in ("held_out", None)
