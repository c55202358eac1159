"""Images of anything but the small world, which stand for photographs: a model is to say so."""

import colorsys
import math
import random

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from unitoken_jax.scenes.variation import random_sides, to_pixels


def texture(rng: random.Random) -> np.ndarray:
    """uint8[h, w, 3] like a photograph's colours and edges, with nothing of the small world in it.

    Either layers of noise whose power falls with frequency as natural images' does (Field 1987), in related
    colours, cut by random edges; or things of no colour that the world has, on a soft ground.
    """
    height, width = random_sides(rng)
    numpy_rng = np.random.default_rng(rng.getrandbits(64))
    image = (
        _things(height, width, rng, numpy_rng)
        if rng.random() < 0.5
        else _layers(height, width, rng, numpy_rng)
    )
    if rng.random() < 0.3:
        image = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    return to_pixels(image, rng, jpeg_share=0.5)


def _layers(height: int, width: int, rng: random.Random, numpy_rng: np.random.Generator) -> np.ndarray:
    """float32[h, w, 3]: noise, and more of it where other noise is high."""
    image = _natural_noise(height, width, numpy_rng, rng.uniform(0.7, 1.7))
    for _ in range(rng.randint(0, 5)):
        mask = _natural_noise(height, width, numpy_rng, rng.uniform(1.2, 2.2))[..., 0]
        level = np.quantile(mask, rng.uniform(0.5, 0.9))
        edge = max(float(mask.std()) * rng.uniform(0.01, 0.3), 1e-3)
        cover = np.clip((mask - level) / edge + 0.5, 0, 1)[..., None]
        image = image * (1 - cover) + _natural_noise(height, width, numpy_rng, rng.uniform(0.6, 1.7)) * cover
    return image


def _things(height: int, width: int, rng: random.Random, numpy_rng: np.random.Generator) -> np.ndarray:
    """float32[h, w, 3]: dull blobs, strokes, dots or rows of bricks, on noise of low frequencies."""
    ground = _natural_noise(height, width, numpy_rng, rng.uniform(1.6, 2.6))
    mean = ground.mean((0, 1))
    ground = np.clip(mean + (ground - mean) * rng.uniform(0.1, 0.8), 0, 255)
    canvas = Image.fromarray(np.rint(ground).astype(np.uint8)).resize((2 * width, 2 * height))
    rng.choice((_blobs, _strokes, _dots, _bricks))(ImageDraw.Draw(canvas), 2 * height, 2 * width, rng)
    image = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32)
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, (*[rng.uniform(0.3, 2.5)] * 2, 0))
    return image + numpy_rng.normal(0, rng.uniform(0, 8), image.shape)


def _blobs(pen: ImageDraw.ImageDraw, height: int, width: int, rng: random.Random) -> None:
    """Up to nine polygons and ellipses."""
    side = min(height, width)
    for _ in range(rng.randint(1, 9)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            turns = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 9)))
            reaches = [side * rng.uniform(0.03, 0.35) for _ in turns]
            corners = [(x + math.cos(t) * r, y + math.sin(t) * r) for t, r in zip(turns, reaches)]
            pen.polygon(corners, _dull(rng))
        else:
            wide, tall = (side * rng.uniform(0.04, 0.35) for _ in range(2))
            pen.ellipse((x - wide, y - tall, x + wide, y + tall), _dull(rng))


def _strokes(pen: ImageDraw.ImageDraw, height: int, width: int, rng: random.Random) -> None:
    """Up to fourteen bent lines."""
    side = min(height, width)
    for _ in range(rng.randint(1, 14)):
        points = [(rng.uniform(0, width), rng.uniform(0, height))]
        for _ in range(rng.randint(1, 3)):
            x, y = points[-1]
            points.append((x + rng.gauss(0, side / 5), y + rng.gauss(0, side / 5)))
        pen.line(points, _dull(rng), max(1, round(side * rng.uniform(0.01, 0.08))))


def _dots(pen: ImageDraw.ImageDraw, height: int, width: int, rng: random.Random) -> None:
    """Many dots of any colour, too small for objects."""
    for _ in range(rng.randint(8, 90)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        size = min(height, width) * rng.uniform(0.004, 0.025)
        colour = rng.randrange(256), rng.randrange(256), rng.randrange(256)
        pen.ellipse((x - size, y - size, x + size, y + size), colour)


def _bricks(pen: ImageDraw.ImageDraw, height: int, width: int, rng: random.Random) -> None:
    """Rows of bricks, or stripes."""
    side, ink = min(height, width), _dull(rng)
    down, across = side * rng.uniform(0.04, 0.25), side * rng.uniform(0.08, 0.4)
    thickness = max(1, round(down * rng.uniform(0.08, 0.4)))
    for row in range(int(height / down) + 1):
        pen.line((0, row * down, width, row * down), ink, thickness)
        for column in range(int(width / across) + 2) if across < side / 3 else ():
            x = (column + row % 2 / 2) * across
            pen.line((x, row * down, x, (row + 1) * down), ink, thickness)


def _dull(rng: random.Random) -> tuple[int, int, int]:
    """A colour that nobody would call red, green, blue or yellow."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), 0.3 * rng.random() ** 2, rng.random())
    return round(255 * red), round(255 * green), round(255 * blue)


def _natural_noise(height: int, width: int, rng: np.random.Generator, fall: float) -> np.ndarray:
    """float32[h, w, 3] around random colours, amplitude falling with frequency to the power `fall`."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    stretch = math.exp(rng.normal(0, 0.5))
    frequency = np.sqrt((down * stretch) ** 2 + (across / stretch) ** 2)
    frequency[0, 0] = 1
    spectrum = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    spectrum /= frequency**fall
    spectrum[:, 0, 0] = 0
    planes = np.fft.irfft2(spectrum, s=(height, width))
    planes /= planes.std((1, 2), keepdims=True) + 1e-9
    mixing = np.array([0.8, 0.5, 0.3])[:, None] * rng.normal(0, 1, (3, 3)) + np.array([[1], [0], [0]])
    colours = np.einsum("chw,cd->hwd", planes, mixing)
    return (rng.uniform(40, 215, 3) + rng.uniform(12, 50) * colours).astype(np.float32)
