"""Any-resolution geometry: which tiles an image is cut into, and in which order its patches are read.

Integers only: from an image's height and width in pixels to a list of rows of the flattened SigLIP features.
Facts from the published code: the grid with most effective pixels wins, then the least waste; patches of the
padding are dropped by `int()` truncation, the same number on both sides; each kept row ends in a new-line.

An example with tiles of 2 x 2 patches: an image twice as wide as high takes the grid (1, 2), two tiles. Its
features are 12 rows, 4 of the whole image squashed into one crop, then 4 of each tile:

    whole   tile 1  tile 2      canvas of the tiles     layout
     0  1     4  5    8  9        4  5  8  9            0 1 2 3   4 5 8 9 NL   6 7 10 11 NL
     2  3     6  7   10 11        6  7 10 11
"""

import functools
import math

import einops
import numpy as np

from unitoken_jax.config import SequenceConfig, SiglipConfig

NEW_ROW = -1  # in a feature layout: the embedding of new-line stands here


def choose_grid(height: int, width: int, side: int, grids: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (rows, columns) of `grids` that keeps most of a height x width image in tiles of `side` px."""
    best, best_key = grids[0], (-1, 0)
    for rows, columns in grids:
        scale = min(columns * side / width, rows * side / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        key = (effective, effective - rows * columns * side * side)
        if key > best_key:
            best, best_key = (rows, columns), key
    return best


def fitted_size(height: int, width: int, grid: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) in px of the image, aspect kept, as large as the grid's canvas allows."""
    canvas_h, canvas_w = grid[0] * side, grid[1] * side
    scale_h, scale_w = canvas_h / height, canvas_w / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * scale_h), canvas_w)


def kept_patches(height: int, width: int, grid: tuple[int, int], patches: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the patch canvas without its padding; `patches` is a tile's side."""
    canvas_h, canvas_w = grid[0] * patches, grid[1] * patches
    if width / height > canvas_w / canvas_h:
        padding = (canvas_h - int(height * (canvas_w / width))) // 2
        return padding, canvas_h - padding, 0, canvas_w
    padding = (canvas_w - int(width * (canvas_h / height))) // 2
    return 0, canvas_h, padding, canvas_w - padding


def crop_count(height: int, width: int, siglip: SiglipConfig, sequence: SequenceConfig) -> int:
    """SigLIP crops of a height x width image: the whole one, and the tiles of any-res."""
    if sequence.resolution == "base":
        return 1
    rows, columns = choose_grid(height, width, siglip.image_size, sequence.grids)
    return 1 + rows * columns


def feature_layout(height: int, width: int, siglip: SiglipConfig, sequence: SequenceConfig) -> np.ndarray:
    """int32[n]: rows of the image's flattened [crops * P] features in reading order, NEW_ROW at row ends.

    The whole image's patches come first (no new-lines), then the tiles' patches as one canvas.
    """
    grid = None
    if sequence.resolution == "anyres":
        grid = choose_grid(height, width, siglip.image_size, sequence.grids)
    return _layout(height, width, grid, siglip.grid)


@functools.lru_cache(maxsize=4096)
def _layout(height: int, width: int, grid: tuple[int, int] | None, side: int) -> np.ndarray:
    """`feature_layout` for the `grid` chosen (None: no tiles), of tiles with `side` x `side` patches."""
    layout = np.arange(side * side, dtype=np.int32)
    if grid is not None:
        rows, columns = grid
        tiles = np.arange(rows * columns * side * side, dtype=np.int32) + side * side
        canvas = einops.rearrange(
            tiles, "(rows columns h w) -> (rows h) (columns w)", rows=rows, columns=columns, h=side
        )
        top, bottom, left, right = kept_patches(height, width, grid, side)
        kept = canvas[top:bottom, left:right]
        ends = np.full((len(kept), 1), NEW_ROW, np.int32)
        rows_with_ends = np.concatenate([kept, ends], axis=1)
        layout = np.concatenate([layout, einops.rearrange(rows_with_ends, "row column -> (row column)")])
    layout.flags.writeable = False  # shared by every image of this size
    return layout
