"""Batches for training (endless, resumable) and for validation (one pass).

Grain's ElasticIterator carries the stream; it is experimental, so nothing else touches it. The state is one
integer, the next global row, and means the same on any number of processes and workers.
"""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np

from unitoken_jax.batch import Batch
from unitoken_jax.config import DataConfig, ModelConfig
from unitoken_jax.host import pack
from unitoken_jax.host.sequence import check
from unitoken_jax.host.source import Mixture, Source
from unitoken_jax.host.tokenizer import Tokenizer

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
        check(model, tokenizer.vocabulary)
        self._config, self._model = config, model
        self._process = (process_index, process_count)
        self.sources = [
            Source(source, number, config, model, tokenizer, seed)
            for number, source in enumerate(config.sources)
        ]
        self._mixture = Mixture(
            [source.weight for source in config.sources], [source.row for source in self.sources]
        )
        self._start, self._iterator = 0, None

    def describe(self) -> dict[str, float]:
        """Numbers of the first epoch: examples, skipped, rows, tokens, and how full rows are (0..1)."""
        rows = sum(len(source.plan(0)[0]) for source in self.sources)
        tokens = sum(int(source.lengths_in(0)[:, 0].sum()) for source in self.sources)
        return {
            "examples": sum(len(source.conversations) for source in self.sources),
            "skipped": sum(source.skipped for source in self.sources),
            "rows": rows,
            "tokens": tokens,
            "filled": tokens / (rows * self._config.row_length),
        }

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open()
        return next(self._iterator)

    def state(self) -> int:
        """The next global row: what `restore` needs to go on with the batch after the last one yielded."""
        done = 0 if self._iterator is None else self._iterator.get_state()["global_next_index"]
        return self._start + done

    def restore(self, state: int) -> None:
        """Goes on from global row `state`, whatever number of processes or rows a batch wrote it."""
        if isinstance(state, bool) or not isinstance(state, int | np.integer) or state < 0:
            raise ValueError(f"loader state is {state!r}; expected a row number, 0 or more")
        self.close()
        self._start = int(state)

    def close(self) -> None:
        """Stops the thread and workers; the next batch starts them again from `state()`."""
        if self._iterator is not None:
            self._start = self.state()
            self._iterator.close()
            self._iterator = None

    def _open(self):
        import grain  # here alone: it imports jax, which host code must not
        from grain import experimental

        index, count = self._process
        workers = None
        if self._config.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, parsed or not
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self._config.workers)
        rows = _Rows(self._mixture, self._config, self._model, self._start, count)
        stream = experimental.ElasticIterator(
            grain.MapDataset.source(rows),
            self._config.rows,
            grain.sharding.ShardOptions(shard_index=index, shard_count=count),
            read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH),
            multiprocessing_options=workers,
        )
        return iter(stream)


def _check_split(config: DataConfig, process_index: int, process_count: int) -> None:
    if config.rows % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"data.rows {config.rows} cannot be split over {process_count} processes (this is process "
            f"{process_index}): make it a multiple"
        )


@dataclasses.dataclass
class _Rows:
    """The random-access source that grain reads: element i is one row as a dict of arrays."""

    mixture: Mixture
    config: DataConfig
    model: ModelConfig
    start: int
    process_count: int

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        # Process p reads i = p, p + P, ...; give it the p-th contiguous part of each global batch instead,
        # so that the global batch does not depend on P.
        batch, place = divmod(int(i), self.config.rows)
        share = self.config.rows // self.process_count
        place = place % self.process_count * share + place // self.process_count
        examples = self.mixture.row(self.start + batch * self.config.rows + place)
        made = pack.batch_of([examples], self.config, self.model)
        return {name: array[0] for name, array in made.items()}


class Validation:
    """One pass over `config.validation`, each time it is iterated: every example once, in file order.

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
        check(model, tokenizer.vocabulary)
        self._config, self._model = config, model
        self._share = config.rows // process_count
        self._first = process_index * self._share
        self.sources = [
            Source(source, number, config, model, tokenizer, seed=None)
            for number, source in enumerate(config.validation)
        ]
        self._rows = [(source, row) for source in self.sources for row in range(len(source.plan(0)[0]))]

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self._rows) // self._config.rows)

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            first = batch * self._config.rows + self._first
            rows = [source.row(row) for source, row in self._rows[first : first + self._share]]
            rows += [[] for _ in range(self._share - len(rows))]
            yield pack.batch_of(rows, self._config, self._model)
