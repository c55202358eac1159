"""The host -> device contract: what one training or prefill batch holds.

Host code owns all geometry; the device only gathers. Letters: B rows, T tokens a row, C crops a row,
S side of a SigLIP crop, I images a row for online VQ encoding, H W their size in pixels.

| field                 | type                 | meaning                                                  |
|-----------------------|----------------------|----------------------------------------------------------|
| `tokens`              | int32[B, T]          | ids, 0-padded                                            |
| `labels`              | int32[B, T]          | the id to be learnt here (the loss shifts by one), or -1 |
| `segments`            | int32[B, T]          | packed example number in the row from 1; 0 is padding    |
| `positions`           | int32[B, T]          | RoPE position, restarting at 0 in each segment           |
| `image_feature_index` | int32[B, T]          | row of the [C * P] SigLIP features to put here, or -1    |
| `crops`               | uint8[B, C, S, S, 3] | SigLIP crops; normalised on the device                   |
| `code_index`          | int32[B, T]          | which VQ code of the row's [I * h * w] goes here, or -1  |
| `images`              | uint8[B, I, H, W, 3] | images to encode on the device                           |

`code_index` and `images` are absent unless discrete tokens are made online (they then overwrite
`tokens` there, and `labels` where those are not -1).

An example of a row that two examples share, of 3 and 2 tokens, with one of padding. `segments` decides who
sees whom: a token (row of the table) attends to itself and to what comes before it in its own segment (x).
The model predicts the label of the next position, if it is in the same segment; `labels` are -1 in prompts,
so that of the first example only the last token is learnt here, and of the second the last.

                                    attends to
    slot  segments positions labels  0 1 2 3 4 5  predicts
      0      1         0       -1    x              -
      1      1         1       -1    x x            7
      2      1         2        7    x x x          -   the next slot is another example's
      3      2         0       -1          x        9
      4      2         1        9          x x      -
      5      0         0       -1              x    -   padding, which nothing reads
"""

from typing import NotRequired, TypedDict

import numpy as np


class Batch(TypedDict):
    """One batch; see the module's table."""

    tokens: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    image_feature_index: np.ndarray
    crops: np.ndarray
    code_index: NotRequired[np.ndarray]
    images: NotRequired[np.ndarray]


NO_LABEL = -1
NO_INDEX = -1
ROW_FIELDS = ("tokens", "labels", "segments", "positions", "image_feature_index")
FIELDS = (*ROW_FIELDS, "crops", "code_index", "images")


def shapes(
    rows: int, length: int, crops: int, side: int, images: tuple[int, ...] = ()
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every field of a batch, for ahead-of-time compilation.

    `images` is (I, H, W) of those that are encoded online, else empty.
    """
    table: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        name: ((rows, length), np.dtype(np.int32)) for name in ROW_FIELDS
    }
    table["crops"] = (rows, crops, side, side, 3), np.dtype(np.uint8)
    if images:
        table["code_index"] = (rows, length), np.dtype(np.int32)
        table["images"] = (rows, *images, 3), np.dtype(np.uint8)
    return table
