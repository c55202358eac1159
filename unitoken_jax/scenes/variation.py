"""Scenes as people draw them: what understanding is trained on.

`scene.draw` makes one image of a scene, on the grid, on grey: what the model draws. What people hand a model
differs in ground, shades, sizes, places, lines, sides and compression; `draw_varied` varies them all.
"""

import colorsys
import io
import math
import random

import numpy as np
from PIL import Image
from scipy import ndimage

from unitoken_jax.scenes.scene import CELL, GRID, Scene, SceneObject, Split, digit_bitmap

MIN_SIDE, MAX_SIDE = 48, 144  # pixels of an image's shorter side

# Of each colour's shades: hues in degrees, least saturation, least value.
_SHADES = {
    "red": (-9, 9, 0.62, 0.6),
    "green": (96, 155, 0.45, 0.38),
    "blue": (206, 246, 0.5, 0.45),
    "yellow": (46, 62, 0.55, 0.8),
}
_GROUNDS = (
    (255, 255, 255),
    (250, 244, 225),
    (245, 245, 245),
    (0, 0, 0),
    (30, 30, 34),
    (118, 118, 122),
    (128, 128, 128),
    (200, 200, 200),
    (120, 70, 160),
    (150, 110, 200),
    (140, 100, 70),
    (240, 190, 210),
    (180, 225, 225),
)
_LEAST_CONTRAST = 95  # RGB distance between a ground and what is drawn on it
_LARGEST = {1: 2.6, 2: 1.55, 3: 1.2}  # cells that an object of a scene of so many may span
_SMALLEST = 0.6
_DIGITS_SMALLEST = 0.9  # strokes of smaller digits are thinner than a pixel that SigLIP sees
_STRONGEST_GRADIENT = 22  # grey levels from the middle to an end


def draw_varied(scene: Scene, rng: random.Random, split: Split) -> np.ndarray:
    """A drawing of the scene, uint8[h, w, 3], in a style drawn at random; digits in handwriting of `split`.

    Each object's centre lies in its cell, a third of the width and of the height. A scene without objects is
    a plain ground.
    """
    height, width = random_sides(rng)
    inks = [_shade(obj.colour, rng) for obj in scene]
    ground = _ground(inks, rng)
    image = np.empty((height, width, 3), np.float32)
    image[:] = ground
    if rng.random() < 0.25:
        image += _gradient(height, width, rng) * rng.uniform(4, _STRONGEST_GRADIENT)
    outline = rng.uniform(0.11, 0.2) if rng.random() < 0.12 else None
    softness = rng.choice((0.15, 0.5, 0.5, 0.5, 1.0))  # pixels over which an edge fades
    for obj, ink, (y, x, span) in zip(scene, inks, _layout(scene, height, width, rng)):
        _paint(image, obj, ink, (y, x), span, outline, softness, rng, split)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 9), image.shape)
        image += noise.astype(np.float32)
    return to_pixels(image, rng, jpeg_share=0.4)


def random_sides(rng: random.Random) -> tuple[int, int]:
    """Height and width in pixels; most images are square."""
    side = rng.randint(MIN_SIDE, MAX_SIDE)
    if rng.random() < 0.6:
        return side, side
    longer = round(side * rng.uniform(1, 2))
    return (side, longer) if rng.random() < 0.6 else (longer, side)


def _shade(colour: str, rng: random.Random) -> np.ndarray:
    """A shade of a colour, float32[3] in 0 to 255."""
    low, high, saturation, value = _SHADES[colour]
    hue = rng.uniform(low, high) / 360 % 1
    # Pure colours are what most people pick.
    strength = [1 - (1 - least) * rng.random() ** 1.5 for least in (saturation, value)]
    return np.array(colorsys.hsv_to_rgb(hue, *strength), np.float32) * 255


def _ground(inks: list[np.ndarray], rng: random.Random) -> np.ndarray:
    """A ground that all inks stand out from, float32[3]."""
    while True:
        if rng.random() < 0.6:
            ground = np.array(rng.choice(_GROUNDS), np.float32) + rng.uniform(-6, 6)
        elif rng.random() < 0.5:
            ground = np.full(3, rng.uniform(0, 255), np.float32)
        else:
            saturation = rng.random() ** 1.5
            rgb = colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.15, 1))
            ground = np.array(rgb, np.float32) * 255
        ground = np.clip(ground, 0, 255)
        if all(np.linalg.norm(ground - ink) >= _LEAST_CONTRAST for ink in inks):
            return ground


def _gradient(height: int, width: int, rng: random.Random) -> np.ndarray:
    """float32[h, w, 1] from -1 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    plane = math.sin(angle) * y + math.cos(angle) * x
    return (plane / np.abs(plane).max())[..., None].astype(np.float32)


def _layout(scene: Scene, height: int, width: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """(y, x, span) of each object in pixels: inside the image, apart, each centre well within its cell.

    How far from the grid they are is drawn too: with nothing but far ones, digits take ten times as long to
    learn (benchmarks/RESULTS.md).
    """
    unit = min(height, width) / GRID
    smallest = _DIGITS_SMALLEST if any(obj.is_digit for obj in scene) else _SMALLEST
    alone = len(scene) == 1
    freedom = rng.random() ** (0.5 if alone else 1)
    reach = (0.45 if alone else 0.36) * freedom
    while scene:
        low, high = (math.log(end) * freedom for end in (smallest, _LARGEST[len(scene)]))
        largest = rng.uniform(math.exp(low), math.exp(high))
        spans = [unit * max(largest * (1 - 0.2 * freedom * rng.random()), smallest) for _ in scene]
        for _ in range(12 if alone else 4):
            places = [
                (
                    (obj.row + 0.5 + rng.uniform(-reach, reach)) * height / GRID,
                    (obj.column + 0.5 + rng.uniform(-reach, reach)) * width / GRID,
                    span,
                )
                for obj, span in zip(scene, spans)
            ]
            if _fits(places, height, width):
                return places
    return []


def _fits(places: list[tuple[float, float, float]], height: int, width: int) -> bool:
    """Whether all squares (centre, side) are inside, but for a little, and none overlap."""
    for number, (y, x, span) in enumerate(places):
        half = 0.46 * span
        if min(y, x, height - y, width - x) < half:
            return False
        for other_y, other_x, other_span in places[:number]:
            if max(abs(y - other_y), abs(x - other_x)) < 0.47 * (span + other_span):
                return False
    return True


def _paint(
    image: np.ndarray,
    obj: SceneObject,
    ink: np.ndarray,
    centre: tuple[float, float],
    span: float,
    outline: float | None,
    softness: float,
    rng: random.Random,
    split: Split,
) -> None:
    """Paints one object into `image` float32[h, w, 3]."""
    height, width, _ = image.shape
    y, x = centre
    top, left = max(int(y - span), 0), max(int(x - span), 0)
    bottom, right = min(int(y + span) + 2, height), min(int(x + span) + 2, width)
    down = (np.arange(top, bottom) + 0.5 - y)[:, None] / span
    across = (np.arange(left, right) + 0.5 - x)[None, :] / span
    angle = math.radians(rng.gauss(0, 4))
    stretch = math.exp(rng.gauss(0, 0.06))
    v = (math.cos(angle) * down - math.sin(angle) * across) * stretch
    u = (math.sin(angle) * down + math.cos(angle) * across) / stretch
    fade = max(softness / span, 1e-3)
    if obj.is_digit:
        coverage = _digit_coverage(digit_bitmap(obj.kind, split, rng), v, u, rng)
    else:
        if rng.random() < 0.3:  # an unsteady hand
            wobble, phase = rng.uniform(0.005, 0.025), rng.uniform(0, 2 * math.pi)
            turn = np.arctan2(v, u)
            stretched = 1 + wobble * np.sin(rng.randint(2, 5) * turn + phase) / 0.4
            v, u = v * stretched, u * stretched
        arm = rng.uniform(0.09, 0.18) if outline is None else 0.17
        distance = _distance(obj.kind, v, u, arm)
        coverage = np.clip(0.5 - distance / fade, 0, 1)
        if outline is not None:
            coverage = coverage * np.clip(0.5 + (distance + outline) / fade, 0, 1)
    region = image[top:bottom, left:right]
    region += coverage[..., None].astype(np.float32) * (ink - region)


def _distance(shape: str, v: np.ndarray, u: np.ndarray, arm: float) -> np.ndarray:
    """Distance outside (negative: inside) a shape around 0 whose span is 1; `v` down, `u` across.

    `arm` is half the width of a cross's arms.
    """
    if shape == "circle":
        return np.hypot(v, u) - 0.42
    if shape == "square":
        return np.maximum(abs(v), abs(u)) - 0.42
    if shape == "triangle":
        return np.maximum(v - 0.42, (abs(u) * 1.85 - (v + 0.46)) / 2.1)
    if shape == "cross":
        return np.maximum(np.minimum(abs(v), abs(u)) - arm, np.maximum(abs(v), abs(u)) - 0.46)
    raise ValueError(f"no shape {shape!r}")


def _digit_coverage(bitmap: np.ndarray, v: np.ndarray, u: np.ndarray, rng: random.Random) -> np.ndarray:
    """Coverage of a digit's `bitmap` float32[8, 8] at points whose span is 1, its strokes made crisp."""
    shear = rng.gauss(0, 0.08)
    rows, columns = (v * CELL + (CELL - 1) / 2), ((u + shear * v) * CELL + (CELL - 1) / 2)
    smooth = ndimage.map_coordinates(bitmap, np.broadcast_arrays(rows, columns), order=3, mode="constant")
    crispness = rng.uniform(1.2, 4.0)
    return np.clip((smooth - rng.uniform(0.5, 0.62)) * crispness + 0.5, 0, 1)


def to_pixels(image: np.ndarray, rng: random.Random, jpeg_share: float) -> np.ndarray:
    """float[h, w, 3] in grey levels -> uint8[h, w, 3], of which a share of images has been through JPEG."""
    pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    if rng.random() >= jpeg_share:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=rng.randint(35, 92))
    return np.asarray(Image.open(file).convert("RGB"))
