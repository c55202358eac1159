"""What the examples of a data set take of a row, in a few numbers, from which a row's capacity is chosen."""

import dataclasses

import numpy as np

from unitoken_jax.data.index import Index
from unitoken_jax.sequence.example import ExampleSize


@dataclasses.dataclass(frozen=True)
class SizeSummary:
    """Of the rows of a data set that can be used: how many there are, and what they take of a batch's row.

    Each field of `percentile_95` and of `largest` stands for itself: the example with most tokens need not be
    the one with most crops. `percentile_95` is the smallest number that 95 % of the examples do not exceed.
    """

    rows: int
    drawings: int  # Those that draw one image from a text.
    total: ExampleSize
    percentile_95: ExampleSize
    largest: ExampleSize


def summarize_sizes(index: Index, rows: np.ndarray | None = None) -> SizeSummary:
    """The sizes of those of `rows` bool[N] (None: of all) that can be used. Raises ValueError for none.

    `rows` may be what `held_out.part_rows` says: a training or held-out part alone.
    """
    usable = np.array(index.lengths[:, 0] > 0)
    usable &= True if rows is None else rows
    sizes = index.lengths[usable].astype(np.int64)
    if not len(sizes):
        raise ValueError(f"{index.config.path}: holds no usable conversation")
    statistics = (sizes.sum(0), np.percentile(sizes, 95, axis=0, method="inverted_cdf"), sizes.max(0))
    summaries = [ExampleSize(*map(int, values[:4])) for values in statistics]
    return SizeSummary(len(sizes), int(np.count_nonzero(sizes[:, 4])), *summaries)
