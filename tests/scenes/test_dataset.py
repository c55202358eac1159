"""The quickstart's data set: files are complete and true to their images, and splits do not leak."""

import collections
import dataclasses
import itertools
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers.scene_answers import caption_of, right_answer, without_benchmark_words
from unitoken_jax.scenes import dataset as dataset_module
from unitoken_jax.scenes import questions, scene, variation
from unitoken_jax.scenes.dataset import IMAGE, DatasetSettings, picture, write_dataset
from unitoken_jax.scenes.prompts import CATEGORIES
from unitoken_jax.scenes.scene import SIZE, scene_split
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("quickstart") / "data", SMALL)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows_of(path):
    return [json.loads(line) for line in path.open()]


def training_sets(data):
    return (data.train_captions, data.train_understanding, data.train_generation, data.train_instruct)


def turns_of(row):
    """[(question, answer), ...] of a conversation, without its image's mark."""
    values = [turn["value"].replace(IMAGE, "") for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2]))


def test_files_are_the_public_format(small):
    for path, number in zip(training_sets(small), (30, 60, 60, 40)):
        found = read_conversations(path)
        assert len(found) == number
        for conversation in found:
            assert len(conversation.images) == 1
            with Image.open(conversation.images[0].path) as image:
                assert image.mode == "RGB"
                assert min(image.size) >= SIZE
                assert max(image.size) <= 2 * 144
    drawn = small.drawn_images()
    assert len(drawn) == 60
    for path in drawn:
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE)


def test_every_image_that_is_asked_about_has_its_scene(small):
    scenes = dict(small.train_scenes())
    asked = [
        small.root / row["image"][0]
        for path in training_sets(small)
        for row in rows_of(path)
        if row["conversations"][-1]["value"] != IMAGE
    ]
    assert list(scenes) == asked
    assert len(asked) == 30 + 60 + 20
    assert all(path.is_file() for path in scenes)
    assert {len(found) for found in scenes.values()} == {0, 1, 2, 3}


def test_training_answers_are_right(small):
    """Worked out by another program, from the words of the question and what is in the image."""
    scenes, asked = dict(small.train_scenes()), collections.Counter()
    for row in itertools.chain(*map(rows_of, training_sets(small))):
        if row["conversations"][-1]["value"] == IMAGE:
            continue
        long = 0
        for question, answer in turns_of(row):
            text, expected = without_benchmark_words(question, answer)
            asked["plain" if text == question else "benchmark"] += 1
            long += text != question
            assert right_answer(text, scenes[small.root / row["image"][0]]) == expected, row
        assert long <= 2
    assert asked["plain"] > 300
    assert asked["benchmark"] > 50


def test_captions_name_every_object(small):
    scenes = dict(small.train_scenes())
    for row in rows_of(small.train_captions):
        ((_, answer),) = turns_of(row)
        assert answer == caption_of(scenes[small.root / row["image"][0]])


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """A data set, with what was drawn for it: [(scene, split) of each image], [split of each digit]."""
    scenes, handwriting = [], []
    bitmap = scene.digit_bitmap

    def noting(draw):
        def draw_and_note(found, rng, split):
            scenes.append((found, split))
            return draw(found, rng, split)

        return draw_and_note

    def noted_bitmap(digit, split, rng):
        handwriting.append(split)
        return bitmap(digit, split, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "picture", noting(picture))
        for module in (scene, variation):
            patch.setattr(module, "digit_bitmap", noted_bitmap)
        written = write_dataset(tmp_path_factory.mktemp("noted") / "data", SMALL)
    return written, scenes, handwriting


def test_no_scene_and_no_handwriting_is_on_both_sides(noted):
    written, scenes, handwriting = noted
    assert {split for _, split in scenes} == set(handwriting) == {"train", "held_out"}
    assert all(not found or scene_split(found) == split for found, split in scenes)
    changes = sum(one != other for one, other in itertools.pairwise(handwriting))
    assert changes == 1  # all training images come first
    assert [found for found, split in scenes if split == "train"] == [
        found for _, found in written.train_scenes()
    ]


def test_held_out_answers_are_right(noted):
    written, scenes, _ = noted
    held_out = [found for found, split in scenes if split == "held_out"]
    rows = written.held_out_questions()
    assert len(rows) == len(held_out)
    for row, found in zip(rows, held_out):
        assert right_answer(row["question"], found) == row["answer"], (row, found)
        assert len(found) >= (row["kind"] != "nothing") + (row["kind"] == "relation")


def test_an_image_to_ask_about_is_drawn_in_any_style_and_shows_things_or_none():
    rng = random.Random(0)
    red = (scene.SceneObject(4, "circle", "red"),)
    sizes = [picture(red, rng, "train").shape for _ in range(200)]
    assert 30 < sizes.count((SIZE, SIZE, 3)) < 75  # as the model draws
    empty = [picture((), rng, "train") for _ in range(200)]
    flat = sum(image.std(axis=(0, 1)).max() < 30 for image in empty)
    assert 25 < flat < 120  # plain grounds; the others look like photographs
    again = picture(red, random.Random(3), "train")
    np.testing.assert_array_equal(again, picture(red, random.Random(3), "train"))


def test_images_come_first_in_most_conversations(tmp_path):
    settings = dataclasses.replace(
        SMALL, train_captions=1, train_understanding=400, train_generation=1, train_instruct=1
    )
    rows = [json.loads(line) for line in write_dataset(tmp_path / "d", settings).train_understanding.open()]
    first = [row["conversations"][0]["value"].startswith(IMAGE) for row in rows]
    assert 0.78 < np.mean(first) < 0.92
    turns = [len(row["conversations"]) // 2 for row in rows]
    assert max(turns) == 8
    for row in rows:
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert not any(answer.startswith(("a ", "an ")) for answer in answers[:-1])  # a caption comes last


def test_words_are_few(small):
    """Benchmarks bring about forty words of their own, and capital letters as many again."""
    words = {word for text in small.train_texts() for word in re.findall(r"\w+", text.lower())}
    assert len(words) < 110
    assert not any(IMAGE in text for text in small.train_texts())


def test_held_out(small):
    rows = small.held_out_questions()
    assert collections.Counter(row["kind"] for row in rows) == dict.fromkeys(questions.QUESTIONS, 6)
    assert {row["set"] for row in rows} == {"general", "textread"}
    assert all((small.root / row["image"]).is_file() for row in rows)
    assert len(list((small.root / "images/held_out").iterdir())) == len(rows)
    prompts = small.held_out_prompts()
    assert collections.Counter(prompt.category for prompt in prompts) == dict.fromkeys(CATEGORIES, 10)
    paths = {small.root / row["image"] for row in rows if row["kind"] != "nothing"}  # plain grounds are alike
    folders = [folder for folder in (small.root / "images").iterdir() if folder.name != "held_out"]
    train = {path.read_bytes() for folder in folders for path in folder.iterdir()}
    assert len(folders) == 4
    assert not any(path.read_bytes() in train for path in paths)


def test_equal_settings_give_equal_bytes_and_more_only_adds(small, tmp_path):
    assert contents(write_dataset(tmp_path / "again", SMALL).root) == contents(small.root)
    more = write_dataset(tmp_path / "more", dataclasses.replace(SMALL, train_generation=70))
    lines = small.train_generation.read_text().splitlines()
    assert more.train_generation.read_text().splitlines()[: len(lines)] == lines
    assert more.train_understanding.read_bytes() == small.train_understanding.read_bytes()
    other = write_dataset(tmp_path / "other", dataclasses.replace(SMALL, seed=4))
    assert other.train_generation.read_bytes() != small.train_generation.read_bytes()


def test_several_processes_write_the_same_bytes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "_MANY_EXAMPLES", 50)  # of 190 in all
    monkeypatch.setattr(dataset_module.os, "cpu_count", lambda: 2)
    assert contents(write_dataset(tmp_path / "again", SMALL).root) == contents(small.root)


def test_a_complete_data_set_is_left_alone(small):
    before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*")}
    assert write_dataset(small.root, SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*")} == before


def test_progress(tmp_path):
    seen = []
    write_dataset(tmp_path / "data", SMALL, lambda done, total: seen.append((done, total)))
    assert seen == [(number, 262) for number in range(1, 263)]


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
