"""Batches for training (endless, resumable) and for validation (one pass).

Grain's ElasticIterator carries the stream; it is experimental, so nothing else touches it. The state is one
integer, the next global row, and means the same on any number of processes and workers.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from unitoken_jax.batch import Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.data import packing
from unitoken_jax.data.mixture import Mixture, PackingPool, make_pools
from unitoken_jax.data.sources import Source
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
        self._start = config.mixture_start
        self._iterator: Any = None  # grain's, while open

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
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        if self._config.workers:  # in memory shared with a worker, which a batch should not keep
            batch = {name: np.array(value) for name, value in batch.items()}
        return batch

    def state(self) -> int:
        """The next global row: what `restore` needs to go on with the batch after the last one yielded."""
        done = 0 if self._iterator is None else self._iterator.get_state()["global_next_index"]
        return self._start + done

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
        self._start = int(state)

    def close(self) -> None:
        """Stops the thread and workers; the next batch starts them again from `state()`."""
        if self._iterator is not None:
            self._start = self.state()
            self._iterator.close()
            self._iterator = None

    def _open(self) -> Any:  # grain's iterator; naming its type would import jax
        import grain  # here alone: it imports jax, which host code must not
        from grain import experimental

        index, count = self._process
        workers = None
        if self._config.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, parsed or not
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self._config.workers)
        start = self._start - self._config.mixture_start
        for pool, row in zip(self.pools, self._mixture.rows_before(start)):
            pool.locate(row)  # counts the rows before it once, not in every worker
        rows = _Rows(self._mixture, self._config, self._model, start, count)
        stream = experimental.ElasticIterator(
            grain.MapDataset.source(rows),
            self._config.rows,
            grain.sharding.ShardOptions(shard_index=index, shard_count=count),
            read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH),
            multiprocessing_options=workers,
        )
        return iter(stream)


def _check_split(config: DataConfig, process_index: int, process_count: int) -> None:
    """Raises ValueError where the rows of a batch cannot be split evenly over the processes."""
    if config.rows % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"data.rows {config.rows} cannot be split over {process_count} processes (this is process "
            f"{process_index}): make it a multiple"
        )


@dataclasses.dataclass
class _Rows:
    """The random-access source that grain reads: element i is a row, as a dict of arrays."""

    mixture: Mixture
    config: DataConfig
    model: ModelConfig
    start: int
    process_count: int

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        _end_with_parent()

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        # Process p reads i = p, p + P, ...; give it the p-th contiguous share of each global batch instead,
        # so that the global batch does not depend on P.
        batch, offset = divmod(int(i), self.config.rows)
        share = self.config.rows // self.process_count
        offset = offset % self.process_count * share + offset // self.process_count
        examples = self.mixture.row(self.start + batch * self.config.rows + offset)
        fields = packing.batch_of([examples], self.config, self.model)
        return {name: np.asarray(array)[0] for name, array in fields.items()}


def _end_with_parent() -> None:
    """In a worker process: ends it when the one that started it is gone, and no sooner.

    Grain leaves the first to chance: a worker of a process that was killed would wait for ever, and keep its
    shared memory. A SIGTERM to a whole group of processes is for the one that trains, which needs batches up
    to the step at which it stops.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        if threading.current_thread() is threading.main_thread():  # no other may
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


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
