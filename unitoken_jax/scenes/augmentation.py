"""Drawings that are trained on many times, each time a little different."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from unitoken_jax.scenes.scene import GRID

_ZOOM = (0.92, 1.06)  # with _SHIFT, what leaves centres up to 0.36 cells off their cells' middles there
_SHIFT = 0.06  # cells


def augmented_batches(
    images: np.ndarray, labels: np.ndarray, batch: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of drawings and their labels, each time zoomed, moved and toned a little differently.

    A few ten thousand drawings are otherwise learnt by heart before digits are read well.

    Args:
        images: uint8[N, S, S, 3].
        labels: int32[N, ...], what each shows, cell by cell.
        batch: how many a batch has.
        seed: of the order, which is another in each epoch, and the changes.
    """
    rng = np.random.default_rng(seed)
    side = images.shape[1]
    margin = math.ceil(side / GRID * 0.3)
    while True:
        order = rng.permutation(len(images))
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            padded = np.pad(images[chosen], [(0, 0), (margin, margin), (margin, margin), (0, 0)], "edge")
            zooms = rng.uniform(*_ZOOM, batch)
            shifts = rng.uniform(-_SHIFT, _SHIFT, (batch, 2)) * side / GRID
            moved = np.stack([_moved(*values, side, margin) for values in zip(padded, zooms, shifts)]).astype(
                np.float32
            )
            gains = rng.uniform(0.85, 1.12, (batch, 1, 1, 1))
            offsets = rng.uniform(-14, 14, (batch, 1, 1, 1)) + rng.uniform(-7, 7, (batch, 1, 1, 3))
            noise = rng.standard_normal(moved.shape, np.float32) * rng.uniform(0, 6, (batch, 1, 1, 1))
            toned = moved * gains + offsets + noise
            yield np.clip(toned, 0, 255).astype(np.uint8), labels[chosen]


def _moved(padded: np.ndarray, zoom: float, shift: np.ndarray, side: int, margin: int) -> np.ndarray:
    """The uint8[side, side, 3] that is seen of an image padded by `margin`, zoomed and moved by `shift`."""
    half = side / 2
    down, across = half + margin - half / zoom + shift
    transform = (1 / zoom, 0, across, 0, 1 / zoom, down)
    image = Image.fromarray(padded)
    size = (side, side)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, transform, Image.Resampling.BILINEAR))
