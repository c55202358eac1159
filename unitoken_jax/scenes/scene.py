"""Small scenes for the quickstart: one to three coloured shapes and real handwritten digits in a 3x3 grid.

A scene is a set of objects; drawing it picks a bitmap for each digit (`DIGITS.md` says whose handwriting).
Train and held-out never share a scene, nor a digit bitmap: a fixed hash, the same for every seed, decides.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import random
from typing import Literal

import numpy as np

GRID = 3  # cells a side
CELL = 8  # pixels a side of a cell, the size of the handwritten digits
SIZE = GRID * CELL  # pixels a side of an image

SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple("0123456789")
KINDS = SHAPES + DIGITS
COLOURS = {"red": (235, 60, 55), "green": (30, 205, 75), "blue": (65, 115, 255), "yellow": (250, 210, 60)}
BACKGROUND = (118, 118, 122)  # mid-grey is near 0 once normalised, so an empty cell is a zero input
PLACES = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)

_WEIGHTS_ALONE = (1, 1.5, 1, 1.5, 3, 1.5, 1, 1.5, 1)  # of the cells, for an object alone

Split = Literal["train", "held_out"]
_HELD_OUT_ONE_IN = 5  # one scene and one bitmap in this many is held out


@dataclasses.dataclass(frozen=True, order=True)
class SceneObject:
    """One object. `cell` 0 to 8 in reading order, `kind` one of KINDS, `colour` one of COLOURS."""

    cell: int
    kind: str
    colour: str

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID

    @property
    def place(self) -> str:
        return PLACES[self.cell]

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS


Scene = tuple[SceneObject, ...]  # in reading order, no two in one cell


def split_of(text: str) -> Split:
    """The side of the train / held-out divide that whatever `text` names falls on, whatever the seed."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()  # unlike hash(), always the same
    return "held_out" if int.from_bytes(digest) % _HELD_OUT_ONE_IN == 0 else "train"


def scene_split(scene: Scene) -> Split:
    """Whether a scene is for training or held out; neither order of objects nor handwriting matters."""
    return split_of(" ".join(f"{obj.cell}{obj.kind}{obj.colour}" for obj in sorted(scene)))


@functools.cache
def _bitmaps() -> tuple[np.ndarray, np.ndarray]:
    """The packed digits: coverage float32[1797, 8, 8] in [0, 1], and the digit shown int[1797]."""
    path = importlib.resources.files(__package__).joinpath("digits.npz")
    with path.open("rb") as file, np.load(file) as packed:
        return packed["images"].astype(np.float32) / 16, packed["digits"].astype(int)


@functools.cache
def digit_numbers(digit: str, split: Split) -> tuple[int, ...]:
    """Numbers of the bitmaps that show `digit` and belong to `split`."""
    labels = _bitmaps()[1]
    return tuple(
        number
        for number in range(len(labels))
        if DIGITS[labels[number]] == digit and split_of(f"bitmap {number}") == split
    )


def digit_bitmap(digit: str, split: Split, rng: random.Random) -> np.ndarray:
    """float32[8, 8] in [0, 1]: `digit` in a handwriting of `split`."""
    return _bitmaps()[0][rng.choice(digit_numbers(digit, split))]


def digit_coverage(digit: str, split: Split) -> np.ndarray:
    """float32[n, 8, 8] in [0, 1]: every bitmap of `digit` in `split`."""
    return _bitmaps()[0][list(digit_numbers(digit, split))]


@functools.cache
def shape_coverage(shape: str) -> np.ndarray:
    """float32[8, 8] in [0, 1]: the part of each pixel that `shape` covers (16x16 samples a pixel)."""
    samples = 16
    line = (np.arange(CELL * samples) + 0.5) / samples - CELL / 2
    y, x = line[:, None], line[None, :]
    if shape == "circle":
        inside = x**2 + y**2 <= 3.2**2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 3.5
    elif shape == "triangle":
        inside = (y <= 3.4) & (abs(x) <= (y + 3.7) * 0.54)
    elif shape == "cross":
        inside = (np.minimum(abs(x), abs(y)) <= 1.1) & (np.maximum(abs(x), abs(y)) <= 3.7)
    else:
        raise ValueError(f"no shape {shape!r}: the shapes are {', '.join(SHAPES)}")
    return inside.reshape(CELL, samples, CELL, samples).mean((1, 3)).astype(np.float32)


def draw(scene: Scene, rng: random.Random, split: Split) -> np.ndarray:
    """The scene's image, uint8[SIZE, SIZE, 3]; digits in handwriting drawn from `split`'s bitmaps."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[:] = BACKGROUND
    for obj in scene:
        if obj.is_digit:
            coverage = digit_bitmap(obj.kind, split, rng)
        else:
            coverage = shape_coverage(obj.kind)
        y, x = obj.row * CELL, obj.column * CELL
        image[y : y + CELL, x : x + CELL] = tint(coverage, obj.colour)
    return image


def tint(coverage: np.ndarray, colour: str) -> np.ndarray:
    """Coverage float32[..., h, w] in [0, 1] -> uint8[..., h, w, 3] in `colour` on the background."""
    background = np.array(BACKGROUND, np.float32)
    ink = np.array(COLOURS[colour], np.float32) - background
    return np.rint(background + coverage[..., None] * ink).astype(np.uint8)


def place_at_random(kinds_and_colours: list[tuple[str, str]], rng: random.Random) -> Scene:
    """A scene of objects of these kinds and colours, each in a random cell of its own; one alone is more
    often in the middle, as people place it."""
    if len(kinds_and_colours) == 1:
        cells = rng.choices(range(GRID * GRID), _WEIGHTS_ALONE)
    else:
        cells = rng.sample(range(GRID * GRID), len(kinds_and_colours))
    objects = (SceneObject(cell, kind, colour) for cell, (kind, colour) in zip(cells, kinds_and_colours))
    return tuple(sorted(objects))


def random_kind(rng: random.Random) -> str:
    """A shape or a digit, equally often, although there are more digits than shapes."""
    return rng.choice(SHAPES) if rng.random() < 0.5 else rng.choice(DIGITS)


def random_scene(rng: random.Random, split: Split, count: int | None = None, kinds=None) -> Scene:
    """A scene of `split` with `count` objects (None: 1 to 3) of `kinds` (None: shapes and digits).

    Kinds and colours repeat within a scene more often than by chance: there must be something to count.
    """
    count = count or rng.randint(1, 3)
    while True:
        kinds_and_colours: list[tuple[str, str]] = []
        for _ in range(count):
            kind = rng.choice(kinds) if kinds else random_kind(rng)
            colour = rng.choice(tuple(COLOURS))
            if kinds_and_colours and rng.random() < 0.25:
                kind = rng.choice(kinds_and_colours)[0]
            if kinds_and_colours and rng.random() < 0.25:
                colour = rng.choice(kinds_and_colours)[1]
            kinds_and_colours.append((kind, colour))
        scene = place_at_random(kinds_and_colours, rng)
        if scene_split(scene) == split:
            return scene


def drawings(number: int, seed: int, split: Split) -> np.ndarray:
    """uint8[number, SIZE, SIZE, 3]: random scenes of `split`, drawn as the model draws them."""
    rng = random.Random(f"{seed} drawings")
    return np.stack([draw(random_scene(rng, split), rng, split) for _ in range(number)])
