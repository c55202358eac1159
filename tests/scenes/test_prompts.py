"""Text-to-image prompts: each comes with a scene of what it names, and the held-out ones stay held out."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenes.test_questions import RANDOMS
from unitoken_jax.scenes.prompts import (
    CATEGORIES,
    RELATED,
    TRAINING_ONLY,
    RequiredObject,
    Requirement,
    random_pair,
    random_prompt,
    scene_for,
    vary_prompt,
)
from unitoken_jax.scenes.scene import KINDS, scene_split


@pytest.mark.parametrize("category", [*CATEGORIES, *TRAINING_ONLY])
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


def test_a_related_prompt_says_what_its_scene_shows():
    rng = random.Random(6)
    for _ in range(200):
        requirement, scene = random_pair(RELATED, rng, "train")
        words = re.fullmatch(
            r"an? (\w+) (\w+) (left of|right of|above|below) an? (\w+) (\w+)", requirement.prompt
        )
        by_name = {(obj.colour, obj.kind): divmod(obj.cell, 3) for obj in scene}
        (y, x), (other_y, other_x) = by_name[words[1], words[2]], by_name[words[4], words[5]]
        true = {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}
        assert true[words[3]], (requirement.prompt, scene)


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


@given(st.sampled_from([*CATEGORIES, *TRAINING_ONLY]), RANDOMS)
def test_other_words_for_a_prompt_name_the_same(category, rng):
    prompt = random_pair(category, rng, "train")[0].prompt
    for _ in range(8):
        varied = vary_prompt(prompt, rng).lower().removesuffix(".")
        varied = re.sub(r"^(draw|an? (picture|image|drawing) of) ", "", varied)
        assert re.sub(r"\b(a|an) ", "", varied) == re.sub(r"\b(a|an) ", "", prompt)


def test_scene_for_an_impossible_split():
    requirement = Requirement("position", "", (RequiredObject("circle", relation="left of", other=0),))
    with pytest.raises(ValueError, match="no scene of split 'train'"):
        scene_for(requirement, random.Random(0), "train")
