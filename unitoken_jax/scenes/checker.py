"""Reads an image back and judges it against a prompt's requirement, without any trained network of ours.

Cell by cell: is anything there, in which of the four colours, and which shape or digit. Shapes and digits
are told apart by kernel ridge regression on the cell's coverage, fitted to the shapes and the *training*
digits, as drawn and blurred. It knows nothing about the models it judges, nor about the held-out handwriting.

The rule follows GenEval (arXiv 2310.11513): what the prompt names must be there, in its colours and
relations, each in an object of its own; other objects do not matter, except for counting (and whole-scene
prompts), where nothing else may be in the image, not even an unclear object. `Verdict.exact` asks that of
every category.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

from unitoken_jax.scenes.prompts import CATEGORIES, MEMBERS, SCENE, TRAINING_ONLY, RequiredObject, Requirement
from unitoken_jax.scenes.questions import PLURALS, related
from unitoken_jax.scenes.scene import (
    BACKGROUND,
    CELL,
    COLOURS,
    DIGITS,
    GRID,
    KINDS,
    SIZE,
    SceneObject,
    Split,
    digit_coverage,
    draw,
    random_scene,
    shape_coverage,
)

UNCLEAR = "unclear"  # kind or colour of an object that is like none we know

_INK = 45.0  # RGB distance from the background at which a pixel counts as drawn on
_MIN_PIXELS = 6  # drawn pixels that make an object of a cell; the thinnest digit has twice as many
_MAX_COLOUR_ERROR = 0.25  # part of a cell's energy that its colour may leave unexplained
_MIN_LIKENESS = 0.88  # cosine to the nearest template; 99.8 % of unseen real digits are above
_MIN_SCORE = -0.1  # classes are fitted to +1 (is one) and -1 (is none); mixtures of two digits end near -0.1
_TEMPLATE_BLURS = (0.0, 0.7)  # pixels
_SHAPE_COPIES = 40  # of each shape, slightly noisy: there are about 145 of each digit
_GAMMA, _RIDGE = 6.0, 0.1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the checker says of an image and a requirement.

    `ok`: the image shows what the prompt asks for; `exact`: it shows that and nothing else; `reasons`: what
    is wrong, empty where it is `ok`.
    """

    ok: bool
    exact: bool
    reasons: tuple[str, ...]


def detect(image: np.ndarray) -> tuple[SceneObject, ...]:
    """The objects of uint8[SIZE, SIZE, 3] in reading order; kind or colour may be UNCLEAR."""
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an image to check is uint8[{SIZE}, {SIZE}, 3], not {image.dtype}{list(image.shape)}"
        )
    ink = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    cells = ink.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2).reshape(GRID * GRID, CELL, CELL, 3)
    drawn = np.linalg.norm(cells, axis=-1) > _INK
    objects = []
    for cell in np.flatnonzero(drawn.sum((1, 2)) >= _MIN_PIXELS):
        colour, coverage = _colour_of(cells[cell])
        objects.append(SceneObject(int(cell), _kind_of(coverage), colour))
    return tuple(objects)


def _colour_of(ink: np.ndarray) -> tuple[str, np.ndarray]:
    """float32[h, w, 3] off the background -> the colour that explains it best, and its coverage."""
    fits: list[tuple[float, str, np.ndarray]] = []
    for name, rgb in COLOURS.items():
        direction = np.array(rgb, np.float32) - np.array(BACKGROUND, np.float32)
        coverage = np.clip(ink @ direction / (direction @ direction), 0, None)
        error = float(((ink - coverage[..., None] * direction) ** 2).sum() / (ink**2).sum())
        fits.append((error, name, coverage))
    error, name, coverage = min(fits, key=lambda fit: fit[0])
    return (name if error <= _MAX_COLOUR_ERROR else UNCLEAR), coverage


def _kind_of(coverage: np.ndarray) -> str:
    """The shape or digit that coverage float32[8, 8] shows; UNCLEAR where it is like none of them."""
    templates, weights = _classifier()
    features = _normalised(coverage[None])
    likeness = features @ templates.T
    scores = (np.exp(-2 * _GAMMA * (1 - likeness)) @ weights)[0]
    if likeness.max() < _MIN_LIKENESS or scores.max() < _MIN_SCORE:
        return UNCLEAR
    return KINDS[int(scores.argmax())]


@functools.cache
def _classifier() -> tuple[np.ndarray, np.ndarray]:
    """Templates float32[n, 64] of unit length and weights float32[n, kinds]; takes about a second."""
    rng = np.random.default_rng(0)
    coverages, kinds = [], []
    for index, kind in enumerate(KINDS):
        if kind in DIGITS:
            group = digit_coverage(kind, "train")
        else:
            group = np.repeat(shape_coverage(kind)[None], _SHAPE_COPIES, axis=0)
            group = np.clip(group + rng.normal(0, 0.05, group.shape), 0, 1)
        for sigma in _TEMPLATE_BLURS:
            coverages.append(blurred(group, sigma, "constant"))
            kinds += [index] * len(group)
    templates = _normalised(np.concatenate(coverages))
    kernel = np.exp(-2 * _GAMMA * (1 - templates @ templates.T))
    kernel[np.diag_indices_from(kernel)] += _RIDGE
    targets = 2 * np.eye(len(KINDS), dtype=np.float32)[kinds] - 1
    return templates, np.linalg.solve(kernel, targets)


def _normalised(coverages: np.ndarray) -> np.ndarray:
    """[n, 8, 8] -> float32[n, 64] of unit length: a faint object is the same object."""
    flat = coverages.reshape(len(coverages), -1).astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def blurred(images: np.ndarray, sigma: float, edge: Literal["edge", "constant"] = "edge") -> np.ndarray:
    """[n, h, w] blurred with a Gaussian of `sigma` pixels (0: not at all); `edge` is numpy.pad's mode."""
    if sigma == 0:
        return images
    reach = np.arange(-3, 4)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (1, 2):
        margin = [(3, 3) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(images, margin, mode=edge)
        size = images.shape[axis]
        images = sum(w * padded.take(range(i, i + size), axis) for i, w in enumerate(weights))
    return images


def check(image: np.ndarray, requirement: Requirement) -> Verdict:
    """Judges uint8[SIZE, SIZE, 3] by the rule at the top of this file."""
    detected = detect(image)
    reasons = []
    for item in requirement.include:
        number = sum(_matches(obj, item) for obj in detected)
        if number < item.count:
            reasons.append(f"{number} of {item.count} {_name(item)}" if number else f"no {_name(item)}")
    if not reasons and not _assignable(detected, requirement.include):
        relations = [item for item in requirement.include if item.relation]
        reasons = [f"not {item.relation} the {_name(requirement.include[item.other])}" for item in relations]
        reasons = reasons or ["one object asked for twice"]
    surplus = len(detected) - sum(item.count for item in requirement.include)
    exact = not reasons and surplus == 0
    if surplus > 0 and requirement.category in ("counting", SCENE):
        reasons.append(f"{surplus} too many")
    return Verdict(not reasons, exact, tuple(reasons))


def _name(item: RequiredObject) -> str:
    """A required object in words, for a reason: "blue circles", "digit", "red cross top left"."""
    noun = PLURALS[item.kind] if item.count > 1 else item.kind
    return " ".join(word for word in (item.colour, noun, item.place) if word)


def _matches(obj: SceneObject, item: RequiredObject) -> bool:
    """Whether `obj` may be the required one, relations aside."""
    return (
        obj.kind in MEMBERS[item.kind]
        and item.colour in (None, obj.colour)
        and item.place in (None, obj.place)
    )


def _assignable(detected: tuple[SceneObject, ...], include: tuple[RequiredObject, ...]) -> bool:
    """Whether every required object can be a detected object of its own, with all relations true."""
    slots = [item for item in include for _ in range(item.count)]
    first_slot = [sum(item.count for item in include[:index]) for index in range(len(include))]
    for chosen in itertools.permutations(detected, len(slots)):
        if not all(_matches(obj, item) for obj, item in zip(chosen, slots)):
            continue
        if all(
            related(chosen[first_slot[index]], item.relation, chosen[first_slot[item.other]])
            for index, item in enumerate(include)
            if item.relation
        ):
            return True
    return False


def score_images(requirements: Sequence[Requirement], verdicts: Sequence[Verdict]) -> dict:
    """Shares in [0, 1]: {"overall": mean of the categories, "categories": {...}, "exact": {...}}.

    `exact` is by category too. Only categories that occur count; with all six `overall` is GenEval's score.
    """
    by_category: dict[str, list[Verdict]] = {name: [] for name in (*CATEGORIES, *TRAINING_ONLY)}
    for requirement, verdict in zip(requirements, verdicts, strict=True):
        by_category[requirement.category].append(verdict)
    names = [name for name in CATEGORIES if by_category[name]]
    categories = {name: float(np.mean([verdict.ok for verdict in by_category[name]])) for name in names}
    exact = {name: float(np.mean([verdict.exact for verdict in by_category[name]])) for name in names}
    overall = sum(categories.values()) / len(names) if names else float("nan")
    return {"overall": overall, "categories": categories, "exact": exact}


def accuracy(
    number: int = 1000, seed: int = 0, blur: float = 0.0, noise: float = 0.0, split: Split = "held_out"
) -> dict[str, float]:
    """How well `detect` reads drawn scenes, which is the best that a perfect model can score.

    Args:
        number: scenes that are drawn.
        seed: of scenes, handwriting and noise.
        blur: standard deviation of a Gaussian blur, in pixels.
        noise: standard deviation of normal noise added to each colour value, in grey levels of 255.
        split: whether scenes and handwriting are those for training or the held-out ones.

    Returns:
        {"scenes", "objects"}: the shares, in [0, 1], of scenes and of their objects that were read right.
    """
    rng = random.Random(f"{seed} checker")
    noise_rng = np.random.default_rng(seed)
    right_scenes = right_objects = objects = 0
    for _ in range(number):
        scene = random_scene(rng, split)
        image = draw(scene, rng, split).astype(np.float32)
        image = blurred(image.transpose(2, 0, 1), blur).transpose(1, 2, 0)
        noisy = image + noise_rng.normal(0, 1, image.shape) * noise
        detected = detect(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8))
        right_scenes += detected == scene
        right_objects += len(set(detected) & set(scene))
        objects += len(scene)
    return {"scenes": right_scenes / number, "objects": right_objects / objects}
