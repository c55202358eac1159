"""Any-resolution geometry."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.config import SequenceConfig, SiglipConfig
from unitoken_jax.sequence import anyres

GRIDS = SequenceConfig().grids
sides = st.integers(1, 700)
siglips = st.sampled_from(
    [SiglipConfig(image_size=60), SiglipConfig(), SiglipConfig(image_size=16, patch_size=8)]
)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (768, 768, (2, 2)),
        (300, 300, (2, 1)),  # every grid holds all its pixels: least waste, then the first of the equals
        (200, 1000, (1, 3)),
        (1000, 200, (3, 1)),
        (384, 768, (1, 2)),
        (768, 384, (2, 1)),
    ],
)
def test_choice(height, width, grid):
    assert anyres.choose_grid(height, width, 384, GRIDS) == grid


@given(sides, sides)
def test_chosen_grid_keeps_most_pixels(height, width):
    """Against a literal reading of the rule: most effective pixels, then least waste, then order."""

    def merit(grid):
        rows, columns = grid
        scale = min(columns * 60 / width, rows * 60 / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return -effective, rows * columns * 3600 - effective, GRIDS.index(grid)

    assert anyres.choose_grid(height, width, 60, GRIDS) == min(GRIDS, key=merit)


@given(sides, sides, st.sampled_from(GRIDS))
def test_fitted_image_touches_two_sides_and_keeps_aspect(height, width, grid):
    fitted_h, fitted_w = anyres.fitted_size(height, width, grid, 60)
    assert 1 <= fitted_h <= grid[0] * 60
    assert 1 <= fitted_w <= grid[1] * 60
    assert fitted_h == grid[0] * 60 or fitted_w == grid[1] * 60
    assert abs(fitted_h * width - fitted_w * height) <= 1.01 * max(width, height)


@given(sides, sides, siglips)
def test_layout(height, width, siglip):
    sequence = SequenceConfig()
    layout = anyres.feature_layout(height, width, siglip, sequence)
    rows, columns = anyres.choose_grid(height, width, siglip.image_size, sequence.grids)
    top, bottom, left, right = anyres.kept_patches(height, width, (rows, columns), siglip.grid)
    whole, canvas = layout[: siglip.patches], layout[siglip.patches :]
    np.testing.assert_array_equal(whole, np.arange(siglip.patches))
    if bottom <= top:
        assert canvas.size == 0
        return
    canvas = canvas.reshape(bottom - top, right - left + 1)
    assert (canvas[:, -1] == anyres.NEW_ROW).all()
    assert (layout == anyres.NEW_ROW).sum() == bottom - top
    # Every kept patch once, at the place its tile has in the image.
    tile, within = np.divmod(canvas[:, :-1] - siglip.patches, siglip.patches)
    y = tile // columns * siglip.grid + within // siglip.grid
    x = tile % columns * siglip.grid + within % siglip.grid
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(top, bottom)[:, None], y.shape))
    np.testing.assert_array_equal(x, np.broadcast_to(np.arange(left, right), x.shape))
    assert layout.max() < anyres.crop_count(height, width, siglip, sequence) * siglip.patches


@given(sides, sides, st.sampled_from(GRIDS), st.integers(1, 27))
def test_unpadding_is_symmetric_and_along_one_side(height, width, grid, patches):
    top, bottom, left, right = anyres.kept_patches(height, width, grid, patches)
    assert top == grid[0] * patches - bottom
    assert left == grid[1] * patches - right
    assert top == 0 or left == 0
    assert min(top, left) >= 0


def test_an_image_that_fills_its_grid_keeps_every_patch():
    assert anyres.kept_patches(120, 120, (2, 2), 4) == (0, 8, 0, 8)
    assert anyres.kept_patches(60, 180, (1, 3), 4) == (0, 4, 0, 12)


def test_base_is_one_crop_without_new_lines():
    base = dataclasses.replace(SequenceConfig(), resolution="base")
    np.testing.assert_array_equal(anyres.feature_layout(9, 70, SiglipConfig(), base), np.arange(729))
    assert anyres.crop_count(9, 70, SiglipConfig(), base) == 1


def test_the_largest_image_of_the_published_model():
    """Five crops: 729 patches, and 54 rows of 54 with their new-lines."""
    layout = anyres.feature_layout(800, 800, SiglipConfig(), SequenceConfig())
    assert len(layout) == 729 + 54 * 55
    assert anyres.crop_count(800, 800, SiglipConfig(), SequenceConfig()) == 5


def test_layouts_are_shared_and_read_only():
    layout = anyres.feature_layout(80, 80, SiglipConfig(), SequenceConfig())
    with pytest.raises(ValueError, match="read-only"):
        layout[0] = 5
