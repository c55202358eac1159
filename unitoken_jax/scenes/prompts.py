"""Text-to-image prompts in the six GenEval categories that apply (arXiv 2310.11513), and what they ask for.

A `Requirement` is what `checker.check` needs. Every prompt for training comes with a scene that shows
exactly what it names.
"""

import dataclasses
import random
from collections.abc import Callable

from unitoken_jax.scenes.questions import NUMBERS, PLURALS, RELATIONS, caption, related, with_article
from unitoken_jax.scenes.scene import (
    COLOURS,
    DIGITS,
    KINDS,
    SHAPES,
    Scene,
    Split,
    place_at_random,
    random_kind,
    random_scene,
    scene_split,
    split_of,
)
from unitoken_jax.scenes.wording import vary_wording

CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
SCENE = "scene"  # a whole caption as prompt: for training only, no category of the score
RELATED = "related"  # colours and a relation in one prompt: for training only
TRAINING_ONLY = (SCENE, RELATED)
# What each noun of a prompt may be.
MEMBERS = {kind: (kind,) for kind in KINDS} | {"digit": DIGITS, "shape": SHAPES, "object": KINDS}
_SHARED = ("single", "colours")  # too few prompts exist to hold any out


@dataclasses.dataclass(frozen=True)
class RequiredObject:
    """Objects that a prompt names: `count` of `kind`, which may be "digit", "shape" or "object" for any such.

    `colour` and `place` are None where the prompt leaves them open. With `relation` ("left of", ...), the
    first of these objects stands so to the first object of `Requirement.include[other]`.
    """

    kind: str
    colour: str | None = None
    count: int = 1
    relation: str | None = None
    other: int = 0
    place: str | None = None


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A prompt, its category and what an image must show for it."""

    category: str
    prompt: str
    include: tuple[RequiredObject, ...]

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "Requirement":
        return cls(
            data["category"], data["prompt"], tuple(RequiredObject(**item) for item in data["include"])
        )

    def split(self) -> Split | None:
        """Whether the prompt is for training or held out, whatever its wording; None: it is in both."""
        if self.category in _SHARED:
            return None
        items = [f"{item.count} {item.colour} {item.kind}" for item in self.include]
        relation = self.include[0].relation
        if relation in ("right of", "below"):  # a right of b is b left of a
            items.reverse()
        axis = {None: "", "left of": "x", "right of": "x", "above": "y", "below": "y"}[relation]
        return split_of(" ".join([f"prompt {self.category}", axis, *(items if relation else sorted(items))]))


def scene_prompt(scene: Scene) -> Requirement:
    """A scene's caption as a prompt."""
    include = tuple(RequiredObject(obj.kind, obj.colour, place=obj.place) for obj in scene)
    return Requirement(SCENE, caption(scene), include)


def _colour(rng: random.Random) -> str:
    return rng.choice(tuple(COLOURS))


def _two_kinds(rng: random.Random) -> tuple[str, str]:
    """Two different kinds."""
    first = second = random_kind(rng)
    while second == first:
        second = random_kind(rng)
    return first, second


def _single(rng: random.Random) -> Requirement:
    kind = random_kind(rng)
    return Requirement("single", with_article(kind), (RequiredObject(kind),))


def _two(rng: random.Random) -> Requirement:
    first, second = _two_kinds(rng)
    return Requirement(
        "two",
        f"{with_article(first)} and {with_article(second)}",
        (RequiredObject(first), RequiredObject(second)),
    )


def _counting(rng: random.Random) -> Requirement:
    kind = rng.choice(tuple(PLURALS))
    count = rng.choice((2, 3))
    colour = _colour(rng) if rng.random() < 0.7 else None
    prompt = " ".join(word for word in (NUMBERS[count], colour, PLURALS[kind]) if word)
    return Requirement("counting", prompt, (RequiredObject(kind, colour, count),))


def _colours(rng: random.Random) -> Requirement:
    kind, colour = random_kind(rng), _colour(rng)
    return Requirement("colours", with_article(f"{colour} {kind}"), (RequiredObject(kind, colour),))


def _position(rng: random.Random) -> Requirement:
    first, second = _two_kinds(rng)
    relation = rng.choice(RELATIONS)
    include = (RequiredObject(first, relation=relation, other=1), RequiredObject(second))
    return Requirement("position", f"{with_article(first)} {relation} {with_article(second)}", include)


def _attribution(rng: random.Random) -> Requirement:
    include = tuple(
        RequiredObject(kind, colour) for kind, colour in zip(_two_kinds(rng), rng.sample(tuple(COLOURS), 2))
    )
    prompt = " and ".join(with_article(f"{item.colour} {item.kind}") for item in include)
    return Requirement("attribution", prompt, include)


def _related(rng: random.Random) -> Requirement:
    first, second = _two_kinds(rng)
    relation = rng.choice(RELATIONS)
    include = (
        RequiredObject(first, _colour(rng), relation=relation, other=1),
        RequiredObject(second, _colour(rng)),
    )
    names = [with_article(f"{item.colour} {item.kind}") for item in include]
    return Requirement(RELATED, f"{names[0]} {relation} {names[1]}", include)


_PROPOSE: dict[str, Callable[[random.Random], Requirement]] = {
    "single": _single,
    "two": _two,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "attribution": _attribution,
    RELATED: _related,
}


def random_prompt(category: str, rng: random.Random, split: Split) -> Requirement:
    """A prompt of one of the six CATEGORIES, or RELATED, that `split` may use."""
    while True:
        requirement = _PROPOSE[category](rng)
        if requirement.split() in (split, None):
            return requirement


def scene_for(requirement: Requirement, rng: random.Random, split: Split) -> Scene:
    """A random scene of `split` that shows exactly what is asked; what the prompt leaves open is random.

    Raises ValueError where `split` has none (a colour and a kind leave nine scenes; all may be in the other).
    """
    for _ in range(1000):
        kinds_and_colours = []
        for item in requirement.include:
            for _ in range(item.count):
                kinds_and_colours.append((rng.choice(MEMBERS[item.kind]), item.colour or _colour(rng)))
        scene = place_at_random(kinds_and_colours, rng)
        if scene_split(scene) == split and _relations_hold(requirement, scene):
            return scene
    raise ValueError(f"no scene of split {split!r} found for the prompt {requirement.prompt!r}")


def _relations_hold(requirement: Requirement, scene: Scene) -> bool:
    """Whether all relations are true in `scene`, where every kind that a relation names occurs once."""
    by_kind = {obj.kind: obj for obj in scene}
    return all(
        related(by_kind[item.kind], item.relation, by_kind[requirement.include[item.other].kind])
        for item in requirement.include
        if item.relation
    )


def random_pair(category: str, rng: random.Random, split: Split) -> tuple[Requirement, Scene]:
    """A prompt and a scene for it, of one of the six categories or TRAINING_ONLY."""
    if category == SCENE:
        scene = random_scene(rng, split)
        return scene_prompt(scene), scene
    requirement = random_prompt(category, rng, split)
    return requirement, scene_for(requirement, rng, split)


def vary_prompt(prompt: str, rng: random.Random) -> str:
    """The prompt as people write it: after "draw" or "a picture of", with a capital letter, a full stop."""
    if rng.random() < 0.12:
        prompt = rng.choice(("draw ", "a picture of ", "an image of ", "a drawing of ")) + prompt
    elif rng.random() < 0.05:
        prompt = (
            prompt.removeprefix("an ")
            .removeprefix("a ")
            .replace(" and an ", " and ")
            .replace(" and a ", " and ")
        )
    return vary_wording(prompt, rng) if rng.random() < 0.5 else prompt
