"""Batches for training (endless, resumable) and for validation (one pass).

Grain reads ahead, in a thread or in worker processes. The state is one integer, the next global row, and
means the same on any number of processes and workers.
"""

import dataclasses
import hashlib
import json
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from unitoken_jax.batch import Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.data import packing
from unitoken_jax.data.mixture import Mixture, PackingPool, make_pools
from unitoken_jax.data.sources import Source
from unitoken_jax.data.workers import deaf_to_stop_signals, end_with_parent
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer

PREFETCH = 3  # batches made ahead of the step


class Loader:
    """This process's share of the endless stream of training batches.

    The global batch (all processes' shares one after another) is the same for any `process_count`.
    Iterating yields `Batch` (see batch.py) of `rows / process_count` rows; one thread works ahead.
    """

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Reads and measures `config.sources`.

        Raises ValueError naming the config key, or the file and line of the first bad conversation (unless
        `config.on_error` is "skip").
        """
        if not config.sources:
            raise ValueError("data.sources is empty: name at least one conversation file")
        _check_split(config, process_index, process_count)
        validate_config(model, tokenizer.vocabulary)
        self._config, self._model = config, model
        self._process = (process_index, process_count)
        self.sources = [
            Source(source, number, config, model, tokenizer, seed, self._process)
            for number, source in enumerate(config.sources)
        ]
        self._seed = seed
        self.pools, weights = make_pools(self.sources, config, seed)
        self._mixture = Mixture(weights, [pool.row for pool in self.pools])
        self._next_row = config.mixture_start
        self._iterators: list = []  # grain's, while it is open; one at most
        weakref.finalize(self, _close_all, self._iterators)

    def describe(self) -> dict[str, float]:
        """examples, skipped; and of the first blocks packed: rows, tokens, how full rows are (0..1)."""
        blocks = [pool.block(0) for pool in self.pools]
        rows, tokens = sum(len(block.plan) for block in blocks), sum(block.tokens for block in blocks)
        return {
            "examples": sum(map(len, self.sources)),
            "skipped": sum(source.skipped for source in self.sources),
            "rows": rows,
            "tokens": tokens,
            "filled": tokens / (rows * self._config.row_length),
        }

    def fingerprint(self) -> str:
        """Changes when the sequence of rows would: data, its bad rows, weights, row capacity, seed."""
        names = ("row_length", "row_crops", "row_images", "codes", "prompt_dropout", "mix", "mixture_start")
        settings = {name: getattr(self._config, name) for name in names} | {"seed": self._seed}
        sources = [
            (source.fingerprint(), config.weight, config.ratio)
            for source, config in zip(self.sources, self._config.sources)
        ]
        text = json.dumps([settings, sources, self._model.sequence.crop], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def names(self, k: int) -> list[tuple[int, int, int, bool]]:
        """(source, epoch, number in its file, prompt dropped) of each example of global row `k`."""
        pool, row = self._mixture.locate(k - self._config.mixture_start)
        return [
            (pool + source, epoch, number, dropped)
            for source, epoch, number, dropped in self.pools[pool].names(row)
        ]

    def examples(self, k: int) -> list[dict]:
        """`names` for people: file, number, epoch, prompt_dropped. `unitoken inspect FILE --row NUMBER` shows
        one."""
        keys = ("file", "number", "epoch", "prompt_dropped")
        return [
            dict(zip(keys, (self.sources[source].path, number, epoch, dropped)))
            for source, epoch, number, dropped in self.names(k)
        ]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._iterators:
            with deaf_to_stop_signals():  # grain starts its workers when the first batch is asked for
                self._iterators.append(self._open())
                batch = next(self._iterators[0])
        else:
            batch = next(self._iterators[0])
        self._next_row += self._config.rows
        if self._config.workers:  # in memory shared with a worker, which a batch should not keep
            batch = {name: np.array(value) for name, value in batch.items()}
        return batch

    def state(self) -> int:
        """The next global row: what `restore` needs to go on with the batch after the last one yielded."""
        return self._next_row

    def restore(self, state: int) -> None:
        """Goes on from global row `state`, whatever number of processes or rows a batch wrote it."""
        if isinstance(state, bool) or not isinstance(state, int | np.integer) or state < 0:
            raise ValueError(f"loader state is {state!r}; expected a row number, 0 or more")
        if state < self._config.mixture_start:
            raise ValueError(
                f"the run is at row {state}, but data.mixture_start says that this mixture begins at row "
                f"{self._config.mixture_start}: set it to {state} to change the data here"
            )
        self.close()
        self._next_row = int(state)

    def close(self) -> None:
        """Stops the thread and workers; the next batch starts them again from `state()`.

        A loader that nobody closes is closed when it is deleted or the interpreter ends.
        """
        _close_all(self._iterators)

    def _open(self) -> Any:  # grain's iterator; naming its type would import jax
        import grain  # here alone: it imports jax, which host code must not

        start = self._next_row - self._config.mixture_start
        for pool, row in zip(self.pools, self._mixture.rows_before(start)):
            pool.locate(row)  # counts the rows before it once, not in every worker
        batches = _Batches(self._mixture, self._config, self._model, start, self._process)
        read_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
        stream = grain.MapDataset.source(batches).to_iter_dataset(read_ahead)
        if self._config.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, parsed or not
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._config.workers))
        return iter(stream)


def _close_all(iterators: list) -> None:
    """Closes grain's iterators and forgets them: what is deleted as the interpreter ends fails, aloud."""
    while iterators:
        iterators.pop().close()


def _check_split(config: DataConfig, process_index: int, process_count: int) -> None:
    """Raises ValueError where the rows of a batch cannot be split evenly over the processes."""
    if config.rows % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"data.rows {config.rows} cannot be split over {process_count} processes (this is process "
            f"{process_index}): make it a multiple"
        )


@dataclasses.dataclass
class _Batches:
    """The random-access source that grain reads: element i is this process's share of global batch i.

    `start` is the mixture's row at which batch 0 begins; `process` is (index, count).
    """

    mixture: Mixture
    config: DataConfig
    model: ModelConfig
    start: int
    process: tuple[int, int]

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        end_with_parent()

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, i: int) -> Batch:
        index, count = self.process
        share = self.config.rows // count
        first = self.start + int(i) * self.config.rows + index * share
        rows = [self.mixture.row(row) for row in range(first, first + share)]
        return packing.batch_of(rows, self.config, self.model)


class Validation:
    """One pass over `config.validation`, each time it is iterated: every example once, in a fixed order.

    Yields this process's share of each global batch, as `Loader` does; padding rows fill the last one.
    """

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Reads and measures `config.validation`; raises as `Loader`."""
        if not config.validation:
            raise ValueError("data.validation is empty: name at least one conversation file")
        _check_split(config, process_index, process_count)
        validate_config(model, tokenizer.vocabulary)
        self._config, self._model = config, model
        self._share = config.rows // process_count
        self._first = process_index * self._share
        self.sources = [
            Source(source, number, config, model, tokenizer, seed=None, share=(process_index, process_count))
            for number, source in enumerate(config.validation)
        ]
        pools = [PackingPool([source], [1.0], config, None) for source in self.sources]
        self._rows = [(pool, row) for pool in pools for row in range(pool.rows_in_epoch())]

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self._rows) // self._config.rows)

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            first = batch * self._config.rows + self._first
            rows = [pool.row(row) for pool, row in self._rows[first : first + self._share]]
            rows += [[] for _ in range(self._share - len(rows))]
            yield packing.batch_of(rows, self._config, self._model)
