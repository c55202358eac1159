"""Streams of examples -> endless, random-access rows in fixed proportions.

A PackingPool packs the examples of its sources together; the Mixture takes rows of its pools in turn. With
`DataConfig.mix` "rows" each source is a pool of its own and weights are shares of rows; with "examples" there
is one pool and weights are shares of examples.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from unitoken_jax.config import DataConfig
from unitoken_jax.data import packing
from unitoken_jax.data.sources import Source
from unitoken_jax.sequence.example import Example

MAX_BLOCK, MIN_BLOCK = 65536, 1024  # examples that are packed at a time
_PLANS = 3  # blocks whose plans are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Packed examples, numbered 0 to n - 1 in it: `plan` says which share a row, the arrays which they are.

    sources int64[n] are indices of PackingPool.sources, epochs and indices int64[n] and drops bool[n] as in
    ExampleSlice.
    """

    plan: packing.Plan
    sources: np.ndarray
    epochs: np.ndarray
    indices: np.ndarray
    drops: np.ndarray
    tokens: int  # of all its examples


class PackingPool:
    """Rows of one or several sources' examples. Blocks are packed when first asked for."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], data: DataConfig, seed: int | None
    ):
        """`weights` are shares of examples, used where there are several sources."""
        self.sources, self._capacity = list(sources), packing.row_capacity(data)
        self._seed = None if seed is None else [seed, self.sources[0].number, len(self.sources)]
        # A few small sets would go through many epochs in a large block, one shuffle each.
        self._counts = shares(weights, min(MAX_BLOCK, max(MIN_BLOCK, sum(map(len, sources)))))
        self._ends = [0]  # rows before block b
        self._blocks: collections.OrderedDict[int, Block] = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_blocks": collections.OrderedDict()}

    def blocks_in_epoch(self) -> int:
        """Blocks that hold every example of a lone source once."""
        return -(-len(self.sources[0]) // MAX_BLOCK)

    def rows_in_epoch(self) -> int:
        """Rows that hold every example of a lone source once."""
        return sum(len(self.block(number).plan) for number in range(self.blocks_in_epoch()))

    def _slices(self, number: int) -> list[tuple[int, int]]:
        """(first in its stream, count) of each source's examples in block `number`.

        A lone source's blocks end where its epochs do, so that an epoch's rows hold each example once.
        """
        if len(self.sources) > 1:
            return [(number * count, count) for count in self._counts.tolist()]
        size, blocks = len(self.sources[0]), self.blocks_in_epoch()
        epoch, block = divmod(number, blocks)
        start, end = size * block // blocks, size * (block + 1) // blocks
        return [(epoch * size + start, end - start)]

    def block(self, number: int) -> Block:
        """Block `number`, packed."""
        if (kept := self._blocks.get(number)) is not None:  # one look: another thread may be evicting it
            return kept
        slices = [
            source.slice(start, count) for source, (start, count) in zip(self.sources, self._slices(number))
        ]
        lengths = np.concatenate([examples.lengths for examples in slices])
        block = Block(
            plan=packing.make_plan(lengths, self._capacity, self._seed and [*self._seed, number]),
            sources=np.repeat(np.arange(len(slices)), [len(examples.indices) for examples in slices]),
            epochs=np.concatenate([examples.epochs for examples in slices]),
            indices=np.concatenate([examples.indices for examples in slices]),
            drops=np.concatenate([examples.drops for examples in slices]),
            tokens=int(lengths[:, 0].sum()),
        )
        self._blocks[number] = block
        while len(self._blocks) > _PLANS:
            self._blocks.popitem(last=False)
        return block

    def locate(self, k: int) -> tuple[int, int]:
        """(block, row of it) of row `k`; packs the blocks before it to count their rows, once."""
        while self._ends[-1] <= k:
            self._ends.append(self._ends[-1] + len(self.block(len(self._ends) - 1).plan))
        number = int(np.searchsorted(self._ends, k, side="right")) - 1
        return number, k - self._ends[number]

    def names(self, k: int) -> list[tuple[int, int, int, bool]]:
        """(source, epoch, index, prompt dropped) of each example of row `k`, counted from the start."""
        number, row = self.locate(k)
        block = self.block(number)
        examples = block.plan[row]
        columns = (block.sources, block.epochs, block.indices, block.drops)
        return list(zip(*(column[examples].tolist() for column in columns)))

    def row(self, k: int) -> list[Example]:
        """The examples of row `k`; bad ones that are skipped are missing."""
        examples = (
            self.sources[source].example(epoch, index, drop) for source, epoch, index, drop in self.names(k)
        )
        return [example for example in examples if example is not None]


def make_pools(
    sources: Sequence[Source], data: DataConfig, seed: int | None
) -> tuple[list[PackingPool], list[float]]:
    """(pools, their shares of rows) as `data.mix` says."""
    weights = [source.index.config.weight for source in sources]
    if data.mix == "examples":
        return [PackingPool(sources, weights, data, seed)], [1.0]
    return [PackingPool([source], [1.0], data, seed) for source in sources], weights


def shares(weights: Sequence[float], total: int) -> np.ndarray:
    """int64[n]: `total` split as `weights` say. Raises ValueError for a weight that cannot be kept."""
    exact = np.array(weights, np.float64)
    if np.any(~np.isfinite(exact)) or np.any(exact <= 0):
        raise ValueError(f"data.sources weights must be above 0, found {list(weights)}")
    exact = exact / exact.sum() * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    if np.any(counts == 0):
        raise ValueError(f"data.sources weights {list(weights)}: each must be at least 1/{total} of all")
    return counts


class Mixture:
    """Rows of several streams of rows in fixed proportions: weights are shares of rows."""

    BLOCK = 1024  # rows after which the pattern of streams repeats

    def __init__(self, weights: Sequence[float], row: Sequence[Callable[[int], list[Example]]]):
        """`row[s](j)` gives the j-th row of stream s. Raises ValueError for a weight that cannot be kept."""
        self._row = row
        counts = shares(weights, self.BLOCK if len(weights) > 1 else 1)
        # Stream s's j-th row of a block comes at moment (j + 1/2) / counts[s] of it: as even as can be.
        streams = np.repeat(np.arange(len(counts)), counts)
        moments = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(moments, kind="stable")
        self._pattern = streams[order]
        self._within = np.concatenate([np.arange(count) for count in counts])[order]
        self._counts = counts

    def locate(self, k: int) -> tuple[int, int]:
        """(stream, row of that stream) of row k."""
        block, offset = divmod(k, len(self._pattern))
        stream = int(self._pattern[offset])
        return stream, int(block * self._counts[stream] + self._within[offset])

    def rows_before(self, k: int) -> list[int]:
        """How many rows of each stream come before row k."""
        block, offset = divmod(k, len(self._pattern))
        before = np.bincount(self._pattern[:offset], minlength=len(self._counts))
        return (block * self._counts + before).tolist()

    def row(self, k: int) -> list[Example]:
        """The examples of row k."""
        stream, stream_row = self.locate(k)
        return self._row[stream](stream_row)
