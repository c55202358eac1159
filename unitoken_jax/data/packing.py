"""Examples -> rows: which examples share a row (a plan), and the arrays of a batch of rows.

A plan depends on the lengths, the seed and the epoch alone, holds every example exactly once, and can be
entered at any row.

An example of a plan: five examples of 4, 7, 1, 5 and 3 tokens, rows of 10. Taken from the largest to the
smallest, each goes where it leaves least room:

    7 -> row 0, 3 free     5 -> row 1, 5 free     4 -> row 1, 1 free     3 -> row 0, full     1 -> row 1, full

An example of a row: 12 tokens, whose first 6 are set apart for what comes before continuous tokens
(`DataConfig.row_prefix`). Example 1 has 5 tokens, from its third on with continuous ones; example 2 has 7 of
text alone. What comes first of each fills the first 6 slots. These end within example 2, which goes on right
there, and then comes the rest of example 1:

    slot         0 1 2 3 4 5   6 7 8   9 10 11
    segments     1 1 2 2 2 2   2 2 2   1  1  1
    positions    0 1 0 1 2 3   4 5 6   2  3  4
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from unitoken_jax.batch import NO_INDEX, NO_LABEL, Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.sequence.example import Example, ExampleSize

SMALL = 1 / 8  # of a row; smaller examples fill it well in any order
GROUP = 4096  # examples packed together: more fill rows little better, and mix less of the epoch


def row_capacity(config: DataConfig) -> ExampleSize:
    """What a row holds; without online codes, images take no room."""
    images = config.row_images if config.codes == "online" else 0
    return ExampleSize(config.row_length, config.row_crops, images, config.row_length - config.row_prefix)


def explain_overflow(lengths: ExampleSize, config: DataConfig) -> str | None:
    """Why an example does not fit any row, or None: what it needs, what a row holds, what to change."""
    row = row_capacity(config)
    raised = (
        "raise data.row_length",
        "raise data.row_crops",
        "raise data.row_images",
        "lower data.row_prefix",
    )
    names = (*ExampleSize._fields[:3], "tokens from its first continuous one on")
    for need, room, change, what in zip(lengths, row, raised, names):
        if need > room:
            return f"needs {need} {what}, a row holds {room}: {change}, or shorten the conversation"
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Rows of example numbers. order int64[N]: examples row by row; starts int64[R + 1]: where rows begin."""

    order: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """int64[n]: numbers of the examples in `row`."""
        return self.order[self.starts[row] : self.starts[row + 1]]


def make_plan(lengths: np.ndarray, row: ExampleSize, seed: Sequence[int] | None) -> Plan:
    """Best fit of shuffled examples, GROUP at a time, the large ones first; the rows are shuffled again.

    Args:
      lengths: int[N, 4], the ExampleSize of each example; each must fit an empty row.
      row: what a row holds.
      seed: integers (seed, epoch, ...) that decide the order; None: nothing is shuffled.
    """
    lengths = np.asarray(lengths, np.int64).reshape(-1, 4)
    if np.any(lengths > np.array(row)):
        raise ValueError(f"example {int(np.argmax((lengths > np.array(row)).any(1)))} does not fit a row")
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    # What counts is the capacity an example takes most of.
    size = (lengths / np.maximum(np.array(row), 1)).max(1)
    rows: list[list[int]] = []
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        # Small ones stay in random order: sorted, they would fill rows with their like, and the smallest
        # would run into the other capacities.
        group = group[np.argsort(np.where(size[group] > SMALL, -size[group], 0), kind="stable")]
        rows += _best_fit(group.tolist(), lengths[group].tolist(), row)
    if rng is not None:  # a group's last rows are the emptiest: spread them
        rows = [rows[i] for i in rng.permutation(len(rows))]
    starts = np.concatenate([[0], np.cumsum([len(examples) for examples in rows], dtype=np.int64)])
    return Plan(np.array([e for examples in rows for e in examples], np.int64), starts.astype(np.int64))


def _best_fit(examples: list[int], needs: list[list[int]], row: ExampleSize) -> list[list[int]]:
    """Each example into the row with fewest tokens free among those with room for it, or a new one.

    Open rows lie in one list for each number of free crops, sorted by free tokens: plain Python that looks
    at few rows, which is several times faster than numpy over all of them.
    """
    rows: list[list[int]] = []
    # Of each row with room left: (tokens, row, images, suffix).
    free: list[list[tuple[int, int, int, int]]] = [[] for _ in range(row.crops + 1)]
    for example, (tokens, crops, images, suffix) in zip(examples, needs):
        best, best_crops, best_index = None, 0, 0
        for free_crops in range(crops, row.crops + 1):
            candidates = free[free_crops]
            i = bisect.bisect_left(candidates, (tokens,))
            while i < len(candidates) and (candidates[i][2] < images or candidates[i][3] < suffix):
                i += 1
            if i < len(candidates) and (best is None or candidates[i][0] < best[0]):
                best, best_crops, best_index = candidates[i], free_crops, i
        if best is None:
            best, best_crops = (row.tokens, len(rows), row.images, row.suffix), row.crops
            rows.append([])
        else:
            del free[best_crops][best_index]
        rows[best[1]].append(example)
        remaining = (best[0] - tokens, best[1], best[2] - images, best[3] - suffix)
        if remaining[0]:
            bisect.insort(free[best_crops - crops], remaining)
    return rows


def empty_batch(rows: int, config: DataConfig, model: ModelConfig) -> Batch:
    """A batch of `rows` rows of padding."""
    length, side = config.row_length, model.siglip.image_size
    batch: Batch = {
        "tokens": np.zeros((rows, length), np.int32),
        "labels": np.full((rows, length), NO_LABEL, np.int32),
        "segments": np.zeros((rows, length), np.int32),
        "positions": np.zeros((rows, length), np.int32),
        "image_feature_index": np.full((rows, length), NO_INDEX, np.int32),
        "crops": np.zeros((rows, config.row_crops, side, side, 3), np.uint8),
    }
    if config.codes == "online":
        batch["code_index"] = np.full((rows, length), NO_INDEX, np.int32)
        batch["images"] = np.zeros((rows, config.row_images, *model.sequence.image_size, 3), np.uint8)
    return batch


def fill_row(
    batch: Batch, row: int, examples: Sequence[Example], model: ModelConfig, prefix: int = 0
) -> None:
    """Writes `examples` into row `row` of `batch`, in the slots that `token_slots` gives them.

    Args:
      batch: a batch of `empty_batch`; only row `row` changes.
      prefix: slots at the row's beginning for what comes before the examples' first continuous tokens.
    Raises ValueError where the examples do not fit.
    """
    patches = model.siglip.patches
    height, width = (side // model.vq.stride for side in model.sequence.image_size)
    length, online = batch["tokens"].shape[1], "images" in batch
    room = (length, batch["crops"].shape[1], batch["images"].shape[1] if online else 0, length - prefix)
    needs = [sum(column) for column in zip(*(example.lengths for example in examples))]
    if any(need > have for need, have in zip(needs, room)):
        raise ValueError(f"row {row}: {ExampleSize(*needs)} do not fit {ExampleSize(*room)}")
    crops = images = 0
    for number, (example, slots) in enumerate(zip(examples, token_slots(examples, prefix)), 1):
        last_crop, last_image = crops + len(example.crops), images + len(example.images)
        batch["tokens"][row, slots] = example.tokens
        batch["labels"][row, slots] = example.labels
        batch["segments"][row, slots] = number
        batch["positions"][row, slots] = np.arange(len(example.tokens))
        batch["image_feature_index"][row, slots] = _shift(example.image_feature_index, crops * patches)
        batch["crops"][row, crops:last_crop] = example.crops
        if online:
            batch["code_index"][row, slots] = _shift(example.code_index, images * height * width)
            batch["images"][row, images:last_image] = example.images
        crops, images = last_crop, last_image


def token_slots(examples: Sequence[Example], prefix: int) -> list[np.ndarray]:
    """int64[n] of each example: the slots of a row that its tokens go to, rising.

    What comes before an example's first continuous token fills the row's first `prefix` slots, one example
    after another; everything else follows. Where the first slots end within an example, it goes on right
    there, so that no label is parted from the token it is predicted from. The module draws an example.
    """
    before, free = [], prefix
    for example in examples:
        before.append(min(example.prefix, free))
        free -= before[-1]
    cut = [0 < n < example.prefix for n, example in zip(before, examples)]
    slots, starts, end = [np.array([])] * len(examples), np.cumsum([0, *before]), prefix
    for i in sorted(range(len(examples)), key=lambda i: not cut[i]):
        size = len(examples[i].tokens) - before[i]
        slots[i] = np.r_[starts[i] : starts[i + 1], end : end + size]
        end += size
    return slots


def _shift(index: np.ndarray, by: int) -> np.ndarray:
    return np.where(index == NO_INDEX, NO_INDEX, index + by) if by else index


def batch_of(rows: Sequence[Sequence[Example]], config: DataConfig, model: ModelConfig) -> Batch:
    """The batch whose row r holds the examples `rows[r]`, in that order."""
    batch = empty_batch(len(rows), config, model)
    for row, examples in enumerate(rows):
        fill_row(batch, row, examples, model, config.row_prefix)
    return batch
