"""The checker reads true scenes right, and says no to images that are wrong in one way only."""

import random

import numpy as np
import pytest

from unitoken_jax.scenes import checker
from unitoken_jax.scenes.checker import UNCLEAR, check, detect, score_images
from unitoken_jax.scenes.prompts import (
    CATEGORIES,
    SCENE,
    RequiredObject,
    Requirement,
    random_pair,
    scene_prompt,
)
from unitoken_jax.scenes.scene import BACKGROUND, SceneObject, draw, tint

RED_CIRCLE, BLUE_SEVEN = SceneObject(0, "circle", "red"), SceneObject(5, "7", "blue")


def image_of(*things, seed=0):
    return draw(tuple(sorted(things)), random.Random(seed), "train")


@pytest.mark.parametrize(
    ("blur", "noise", "least"), [(0, 0, 0.97), (0.5, 0, 0.97), (0.5, 6, 0.97), (0.8, 6, 0.95)]
)
def test_true_held_out_scenes(blur, noise, least):
    """Never seen handwriting; a tokenizer's blur, and noise of a 25th of the contrast of ink and ground."""
    shares = checker.accuracy(500, blur=blur, noise=noise)
    assert shares["scenes"] >= least
    assert shares["objects"] >= shares["scenes"]


@pytest.mark.parametrize("category", [*CATEGORIES, SCENE])
def test_true_scenes_satisfy_their_prompts(category):
    rng = random.Random(0)
    verdicts = []
    for _ in range(60):
        requirement, scene = random_pair(category, rng, "train")
        verdicts.append(check(draw(scene, rng, "train"), requirement))
    assert np.mean([verdict.ok for verdict in verdicts]) >= 0.95
    assert all(verdict.exact or not verdict.ok for verdict in verdicts)


def test_detects_what_was_drawn():
    assert detect(image_of(RED_CIRCLE, BLUE_SEVEN)) == (RED_CIRCLE, BLUE_SEVEN)
    assert detect(image_of()) == ()


TWO = Requirement("two", "a circle and a 7", (RequiredObject("circle"), RequiredObject("7")))
ATTRIBUTION = Requirement("attribution", "", (RequiredObject("circle", "red"), RequiredObject("7", "blue")))
COLOURS = Requirement("colours", "", (RequiredObject("circle", "red"),))
POSITION = Requirement(
    "position", "", (RequiredObject("circle", relation="left of", other=1), RequiredObject("7"))
)
COUNTING = Requirement("counting", "two red squares", (RequiredObject("square", "red", 2),))
DIGITS = Requirement("counting", "two digits", (RequiredObject("digit", None, 2),))
SQUARES = (SceneObject(1, "square", "red"), SceneObject(8, "square", "red"))

WRONG = {
    "nothing": (TWO, (), "no circle"),
    "missing": (TWO, (RED_CIRCLE,), "no 7"),
    "wrong shape": (TWO, (SceneObject(0, "square", "red"), BLUE_SEVEN), "no circle"),
    "wrong digit": (TWO, (RED_CIRCLE, SceneObject(5, "2", "blue")), "no 7"),
    "wrong colour": (COLOURS, (SceneObject(0, "circle", "yellow"),), "no red circle"),
    "swapped colours": (
        ATTRIBUTION,
        (SceneObject(0, "circle", "blue"), SceneObject(5, "7", "red")),
        "no red circle",
    ),
    "one right, one wrong colour": (ATTRIBUTION, (RED_CIRCLE, SceneObject(5, "7", "green")), "no blue 7"),
    "swapped places": (
        POSITION,
        (SceneObject(0, "7", "red"), SceneObject(5, "circle", "blue")),
        "not left of the 7",
    ),
    "same column": (
        POSITION,
        (SceneObject(0, "7", "red"), SceneObject(3, "circle", "blue")),
        "not left of the 7",
    ),
    "too few": (COUNTING, SQUARES[:1], "1 of 2 red squares"),
    "too many": (COUNTING, (*SQUARES, SceneObject(4, "square", "red")), "1 too many"),
    "right number, wrong colour": (
        COUNTING,
        (SQUARES[0], SceneObject(8, "square", "green")),
        "1 of 2 red squares",
    ),
    "something else beside": (COUNTING, (*SQUARES, BLUE_SEVEN), "1 too many"),
    "a shape is no digit": (DIGITS, (BLUE_SEVEN, RED_CIRCLE), "1 of 2 digits"),
    "moved": (scene_prompt((RED_CIRCLE,)), (SceneObject(1, "circle", "red"),), "no red circle top left"),
}
RIGHT = {
    "two": (TWO, (RED_CIRCLE, BLUE_SEVEN)),
    "attribution": (ATTRIBUTION, (RED_CIRCLE, BLUE_SEVEN)),
    "position": (POSITION, (RED_CIRCLE, BLUE_SEVEN)),
    "counting": (COUNTING, SQUARES),
    "any digits": (DIGITS, (BLUE_SEVEN, SceneObject(1, "3", "red"))),
    "scene": (scene_prompt((RED_CIRCLE, BLUE_SEVEN)), (RED_CIRCLE, BLUE_SEVEN)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images(name):
    requirement, things, reason = WRONG[name]
    verdict = check(image_of(*things), requirement)
    assert not verdict.ok
    assert not verdict.exact
    assert reason in verdict.reasons


@pytest.mark.parametrize("name", RIGHT)
def test_right_images(name):
    requirement, things = RIGHT[name]
    verdict = check(image_of(*things), requirement)
    assert verdict.ok
    assert verdict.exact
    assert verdict.reasons == ()


def test_other_objects_matter_for_exact_alone():
    verdict = check(image_of(RED_CIRCLE, BLUE_SEVEN, SQUARES[1]), TWO)
    assert verdict.ok
    assert not verdict.exact


def test_one_object_does_not_count_twice():
    twice = Requirement("two", "", (RequiredObject("circle"), RequiredObject("circle", "red")))
    assert not check(image_of(RED_CIRCLE), twice).ok
    assert check(image_of(RED_CIRCLE, SceneObject(3, "circle", "blue")), twice).ok


def test_a_relation_holds_for_some_pair():
    """Two circles, one of them left of the 7."""
    assert check(
        image_of(RED_CIRCLE, SceneObject(1, "7", "red"), SceneObject(2, "circle", "blue")), POSITION
    ).ok


def test_unclear_objects_are_nothing_we_know():
    rng = np.random.default_rng(0)
    image = image_of()
    image[:8, :8] = tint(rng.random((8, 8)), "red")  # noise for a shape
    image[:8, 8:16] = (200, 60, 200)  # no colour of ours
    image[16:, 16:20] = (235, 60, 55)  # half red, half blue
    image[16:, 20:] = (65, 115, 255)
    found = {thing.cell: thing for thing in detect(image)}
    assert found[0].kind == UNCLEAR
    assert found[1].colour == UNCLEAR
    assert found[8].colour == UNCLEAR
    assert not check(image, Requirement("counting", "", (RequiredObject("circle", None, 3),))).ok


def test_smudges_are_no_objects():
    image = np.empty((24, 24, 3), np.uint8)
    image[:] = BACKGROUND
    image[10:12, 10:12] = (235, 60, 55)
    assert detect(image) == ()
    assert detect(image + np.uint8(25)) == ()


def test_wrong_input():
    with pytest.raises(ValueError, match=r"uint8\[24, 24, 3\], not float32\[24, 24, 3\]"):
        detect(np.zeros((24, 24, 3), np.float32))
    with pytest.raises(ValueError, match=r"not uint8\[32, 32, 3\]"):
        detect(np.zeros((32, 32, 3), np.uint8))


def test_score_is_the_mean_of_the_categories():
    right, wrong = image_of(RED_CIRCLE, BLUE_SEVEN), image_of()
    requirements = [TWO, TWO, TWO, POSITION]
    verdicts = [check(p, r) for p, r in zip([right, right, wrong, wrong], requirements)]
    score = score_images(requirements, verdicts)
    assert score["categories"] == pytest.approx({"two": 2 / 3, "position": 0})
    assert score["overall"] == pytest.approx(1 / 3)
