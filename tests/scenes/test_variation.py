"""Scenes as people draw them show what the scene says."""

import colorsys
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenes.test_questions import SCENES
from unitoken_jax.scenes import variation
from unitoken_jax.scenes.scene import COLOURS, DIGITS, KINDS, SHAPES, SceneObject, random_scene
from unitoken_jax.scenes.variation import MAX_SIDE, MIN_SIDE, draw_varied

SEEDS = st.integers(0, 2**32)
HUES = {"red": (345, 375), "yellow": (40, 70), "green": (90, 165), "blue": (195, 255)}  # degrees


def hue(rgb):
    return colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255))[0] * 360


@given(SCENES, SEEDS)
def test_an_equal_seed_gives_equal_pixels(scene, seed):
    first = draw_varied(scene, random.Random(seed), "train")
    np.testing.assert_array_equal(first, draw_varied(scene, random.Random(seed), "train"))
    assert first.dtype == np.uint8
    height, width, channels = first.shape
    assert channels == 3
    assert MIN_SIDE <= min(height, width) <= MAX_SIDE
    assert max(height, width) <= 2 * min(height, width) + 1


@given(SCENES, SEEDS)
def test_objects_are_in_their_cells_inside_and_apart(scene, seed):
    rng = random.Random(seed)
    height, width = rng.randint(MIN_SIDE, MAX_SIDE), rng.randint(MIN_SIDE, MAX_SIDE)
    places = variation._layout(scene, height, width, rng)
    assert len(places) == len(scene)
    for number, (obj, (y, x, span)) in enumerate(zip(scene, places)):
        assert (int(3 * y / height), int(3 * x / width)) == (obj.row, obj.column)
        assert 0.59 * min(height, width) / 3 < span
        assert min(y, x, height - y, width - x) >= 0.46 * span
        for other_y, other_x, other_span in places[:number]:
            assert max(abs(y - other_y), abs(x - other_x)) >= 0.47 * (span + other_span)


@given(st.sampled_from(KINDS), SEEDS)
def test_an_object_is_painted_around_its_centre_within_its_span(kind, seed):
    """But for a little: a turned square reaches out at its corners."""
    rng, span = random.Random(seed), 60
    image = np.zeros((3 * span, 3 * span, 3), np.float32)
    ink = np.full(3, 255, np.float32)
    centre = (1.5 * span, 1.5 * span)
    obj = SceneObject(4, kind, "red")
    variation._paint(image, obj, ink, centre, span, None, 0.5, rng, "train")
    coverage = image[..., 0] / 255
    margin = int(0.96 * span)  # of the canvas, so that the middle is 1.08 spans wide
    assert coverage[margin:-margin, margin:-margin].sum() >= 0.985 * coverage.sum()
    assert 0.03 < coverage.sum() / span**2 < 0.9
    rows, columns = np.indices(coverage.shape)
    middle = [float((axis * coverage).sum() / coverage.sum()) for axis in (rows, columns)]
    assert np.abs(np.array(middle) - centre).max() < 0.2 * span


@given(st.sampled_from(sorted(COLOURS)), SEEDS)
def test_shades_keep_their_colours_hue(colour, seed):
    rng = random.Random(seed)
    low, high = HUES[colour]
    shades = [variation._shade(colour, rng) for _ in range(20)]
    assert all(low <= hue(shade) + (360 if hue(shade) < low else 0) <= high for shade in shades)
    saturations = [colorsys.rgb_to_hsv(*(shade / 255))[1] for shade in shades]
    assert min(saturations) >= 0.45


def test_no_two_colours_share_a_hue():
    ranges = sorted(HUES.values())
    assert all(above[0] - below[1] >= 20 for below, above in itertools.pairwise(ranges))


@given(st.lists(st.sampled_from(sorted(COLOURS)), max_size=3), SEEDS)
def test_ink_stands_out_from_the_ground(colours, seed):
    rng = random.Random(seed)
    inks = [variation._shade(colour, rng) for colour in colours]
    ground = variation._ground(inks, rng)
    assert ground.min() >= 0
    assert ground.max() <= 255
    assert all(np.linalg.norm(ink - ground) >= 95 for ink in inks)


def test_the_middle_of_a_filled_shape_is_in_its_colour():
    """Read from the finished pixels, after gradients, noise and JPEG."""
    wrong = 0
    for seed in range(60):
        rng = random.Random(seed)
        scene = (SceneObject(rng.randrange(9), "square", rng.choice(sorted(COLOURS))),)
        pixels = draw_varied(scene, random.Random(seed), "train").astype(float)
        ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
        ink = np.linalg.norm(pixels - ground, axis=-1) > 80
        assert ink.sum() >= 12
        y, x = (float(np.median(axis)) for axis in np.nonzero(ink))
        assert (int(3 * y / len(pixels)), int(3 * x / pixels.shape[1])) == (scene[0].row, scene[0].column)
        found = hue(np.median(pixels[ink], axis=0))
        low, high = HUES[scene[0].colour]
        wrong += not low <= found + (360 if found < low else 0) <= high
    assert wrong <= 1  # large squares cover the border that the ground is read from


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_digits_are_in_the_splits_handwriting(split, monkeypatch):
    used = []
    bitmap = variation.digit_bitmap

    def noted(digit, split, rng):
        used.append((digit, split))
        return bitmap(digit, split, rng)

    monkeypatch.setattr(variation, "digit_bitmap", noted)
    rng = random.Random(0)
    scenes = [random_scene(rng, split, kinds=DIGITS) for _ in range(30)]
    for scene in scenes:
        draw_varied(scene, rng, split)
    assert used == [(obj.kind, split) for scene in scenes for obj in scene]


def test_grounds_sizes_and_files_vary():
    rng = random.Random(1)
    images = [draw_varied((), rng, "train") for _ in range(80)]
    assert len({image.shape for image in images}) > 40
    grounds = np.array([np.median(image, axis=(0, 1)) for image in images])
    assert (grounds.min(axis=1) > 220).sum() >= 5  # white, cream
    assert (grounds.max(axis=1) < 40).sum() >= 4
    assert (np.ptp(grounds, axis=1) > 60).sum() >= 10  # in a colour
    assert sum(len(np.unique(image.reshape(-1, 3), axis=0)) == 1 for image in images) >= 15  # flat


def test_an_outline_leaves_the_middle_to_the_ground():
    rng = random.Random(3)
    image = np.zeros((90, 90, 3), np.float32)
    ink = np.full(3, 255, np.float32)
    for shape in SHAPES:
        image[:] = 0
        variation._paint(
            image, SceneObject(4, shape, "red"), ink, (45.0, 45.0), 80.0, 0.12, 0.5, rng, "train"
        )
        assert image.max() > 200
        assert 0.05 < (image[..., 0] > 128).mean() < 0.45
        assert image[45, 45].max() == 0


def test_a_shape_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="no shape 'ring'"):
        variation._distance("ring", np.zeros(1), np.zeros(1), 0.1)
