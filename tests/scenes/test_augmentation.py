"""Batches of drawings that change a little each time."""

import numpy as np

from unitoken_jax.scenes.augmentation import augmented_batches
from unitoken_jax.scenes.scene import GRID

SIDE = 48


def dots(number):
    """Black images with one white dot, as far from its cell's centre as drawings go, and its cell marked."""
    rng = np.random.default_rng(0)
    images = np.zeros((number, SIDE, SIDE, 3), np.uint8)
    labels = np.zeros((number, GRID, GRID, 1), np.int32)
    for image, cells in zip(images, labels):
        row, column = rng.integers(0, GRID, 2)
        y, x = ((np.array([row, column]) + 0.5 + rng.choice([-0.36, 0.36], 2)) * SIDE / GRID).astype(int)
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
        cells[row, column] = 1
    return images, labels


def test_every_centre_stays_in_its_cell():
    batches = augmented_batches(*dots(200), batch=200, seed=1)
    for _ in range(3):
        images, labels = next(batches)
        grey = images.mean(-1)
        for image, cells in zip(grey, labels[..., 0]):
            weight = image - np.median(image)
            weight[weight < 80] = 0
            y, x = (np.sum(np.indices(image.shape) * weight, axis=(1, 2)) / weight.sum() + 0.5) * GRID / SIDE
            assert cells[int(y), int(x)] == 1


def test_an_epoch_has_every_image_once_and_no_image_twice_the_same():
    numbers = np.arange(20).reshape(20, 1, 1, 1)
    images = np.broadcast_to(np.uint8(100), (20, SIDE, SIDE, 3))
    batches = augmented_batches(images, numbers, batch=10, seed=0)
    epochs = [[next(batches), next(batches)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(np.concatenate([labels for _, labels in epoch]).ravel()) == list(range(20))
    pixels = np.concatenate([batch for epoch in epochs for batch, _ in epoch])
    assert len({image.tobytes() for image in pixels}) == 40


def test_equal_seeds_give_equal_batches():
    first, again, other = (next(augmented_batches(*dots(8), 8, seed))[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
