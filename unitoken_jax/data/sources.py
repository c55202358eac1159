"""A data set as an endless stream of examples: which one is the n-th, and how it looks in that epoch.

Everything is decided by (seed, source, epoch, example number), so any example can be made alone, on any
process.
"""

import collections
import dataclasses
import hashlib
import logging

import numpy as np

from unitoken_jax.config import DataConfig, ModelConfig, SourceConfig
from unitoken_jax.data import packing, shuffle
from unitoken_jax.data.code_shards import CodesError
from unitoken_jax.data.codes import Codes, codes_needed, codes_path, read_codes
from unitoken_jax.data.held_out import part_rows
from unitoken_jax.data.image_store import OnError
from unitoken_jax.data.index import open_index, report_bad
from unitoken_jax.data.index_build import InvalidRow, write_bad
from unitoken_jax.data.readers import resolve_source
from unitoken_jax.sequence.build import build_example
from unitoken_jax.sequence.conversation import Conversation
from unitoken_jax.sequence.errors import ConversationError, RowError, row_errors
from unitoken_jax.sequence.example import Example, ExampleSize
from unitoken_jax.sequence.image import ImageError
from unitoken_jax.sequence.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CACHE_BYTES = 256 << 20  # decoded examples kept, all of a source together
CACHED_EXAMPLE_BYTES = 64 << 10  # larger ones are not worth it: real images would only push each other out
HOPELESS = 1000  # examples one after another that cannot be built: whatever it is, it is wrong with them all
REPORT = "left_out.jsonl"  # in the index's folder: good rows that these settings cannot use
# Salts that keep the random streams of one seed apart.
_ORDER, _DROP, _RATIO = 0x0A, 0x0D, 0x0F


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSlice:
    """Examples of a stream one after another, n of them.

    epochs, indices int64[n] say which example each is, and in which epoch; drops bool[n] which of them go
    without their prompt; lengths int64[n, 4] are their ExampleSizes.
    """

    epochs: np.ndarray
    indices: np.ndarray
    drops: np.ndarray
    lengths: np.ndarray


class Source:
    """One data set, measured; epoch after epoch of its examples, each in another order."""

    def __init__(
        self,
        config: SourceConfig,
        number: int,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        seed: int | None,
        share: tuple[int, int] = (0, 1),
    ):
        """Opens the index, or measures the data; images are not decoded.

        Args:
          number: the source's index among its siblings, on which every random decision depends.
          seed: None for validation: file order, no dropout, centre crops.
          share: (index, count) of this process among those that measure together.
        Raises ConversationError, ImageError or CodesError, or skips and reports, as `data.on_error` says.
        """
        config = resolve_source(config)
        self.number, self.data, self.model, self.tokenizer, self.seed = number, data, model, tokenizer, seed
        self.path, self.skipped = config.path, 0
        on_error = self._skip if data.on_error == "skip" else None
        self.index = open_index(config, model, tokenizer, folder=data.index, on_error=on_error, share=share)
        self.codes = None
        if data.codes == "offline":
            self.codes = read_codes(config.codes or codes_path(config.path), model)
        selected = self._kept(config.ratio) & part_rows(self.index, config)
        usable = self._usable(selected, on_error)
        if not usable.any():
            raise ConversationError(f"{config.path}: holds no usable conversation")
        # Most data sets have no bad rows; twenty million numbers that count from 0 need not be stored.
        self._rows = None if usable.all() else np.flatnonzero(usable)
        self.skipped = int(np.count_nonzero(selected & ~usable))
        self._cache: collections.OrderedDict[tuple[int, bool], Example] = collections.OrderedDict()
        self._cached_bytes = 0
        self._bad_in_a_row = 0

    def __len__(self) -> int:
        """Examples in an epoch."""
        return len(self.index) if self._rows is None else len(self._rows)

    def conversation(self, i: int) -> Conversation:
        """Usable conversation `i` of the data, as it is written there."""
        return self.index.conversation(i if self._rows is None else int(self._rows[i]))

    def fingerprint(self) -> str:
        """Changes when the examples or their order would."""
        rows = b"" if self._rows is None else self._rows.tobytes()
        return hashlib.sha256(self.index.fingerprint().encode() + rows).hexdigest()

    def _skip(self, error: Exception) -> None:
        """Counts and logs an example that is left out."""
        self.skipped += 1
        log.warning("left out: %s", error)

    def _kept(self, ratio: float) -> np.ndarray:
        """bool[N]: the share `ratio` of all rows, whatever the seed."""
        if not 0 < ratio <= 1:
            raise ValueError(
                f"data.sources ratio of {self.path} is {ratio}; expected more than 0, at most 1 (to see a "
                "set more often than others, raise its weight)"
            )
        if ratio == 1:
            return np.ones(len(self.index), bool)
        return shuffle.uniform(np.arange(len(self.index)), _RATIO) < ratio

    def _usable(self, selected: np.ndarray, on_error: OnError | None) -> np.ndarray:
        """bool[N]: those of the rows `selected` that are measured, fit a row, and have their codes."""
        lengths = self.index.lengths
        usable = np.array(lengths[:, 0] > 0) & selected
        over = usable & (self._needs(lengths) > np.array(packing.row_capacity(self.data))).any(1)
        bad: list[InvalidRow] = [self._over_long(row) for row in np.flatnonzero(over).tolist()]
        usable &= ~over
        if self.codes is not None:
            bad += self._without_codes(usable, self.codes)
        usable[[invalid.row for invalid in bad]] = False
        bad.sort(key=lambda invalid: invalid.row)
        if bad:
            write_bad(self.index.folder / REPORT, bad)
        report_bad(bad, self.index.folder / REPORT, on_error)
        return usable

    def _over_long(self, row: int) -> InvalidRow:
        """Row `row` of the data as one that no row of a batch holds."""
        location = self.index.records.location(row)
        lengths = self._needs(self.index.lengths[row : row + 1])[0]
        reason = packing.explain_overflow(ExampleSize(*lengths.tolist()), self.data)
        return InvalidRow(row, location, "over_long", f"{location}: {reason}")

    def _needs(self, lengths: np.ndarray) -> np.ndarray:
        """int64[n, 4]: the ExampleSize of these examples of the index (int32[n, 5])."""
        needs = lengths[:, :4].astype(np.int64)
        if self.data.codes == "offline":
            needs[:, 2] = 0  # no images to encode
        return needs

    def slice(self, start: int, count: int) -> ExampleSlice:
        """Examples `start` to `start + count` of the endless stream."""
        stream_index = np.arange(start, start + count)
        epochs, within = np.divmod(stream_index, len(self))
        if self.seed is not None:
            for epoch in np.unique(epochs):
                in_epoch = epochs == epoch
                key = shuffle.key_of((self.seed, self.number, int(epoch), _ORDER))
                within[in_epoch] = shuffle.permute_index(within[in_epoch], len(self), key)
        indices = within if self._rows is None else self._rows[within]
        measured = self.index.lengths[indices].astype(np.int64)
        drops = np.zeros(count, bool)
        if self.seed is not None and self.data.prompt_dropout:
            key = shuffle.key_of((self.seed, self.number, _DROP))
            draws = shuffle.uniform(shuffle.splitmix64(indices, key) + epochs.astype(np.uint64), key)
            drops = (measured[:, 4] > 0) & (draws < self.data.prompt_dropout)
        lengths = self._needs(measured)
        lengths[drops, 0] = measured[drops, 4]
        return ExampleSlice(epochs, indices, drops, lengths)

    def example(self, epoch: int, index: int, drop: bool) -> Example | None:
        """Example `index` as epoch `epoch` sees it; None where it proves bad now and errors are skipped.

        Where HOPELESS of them are bad and none between them is good, an error is raised all the same.
        """
        rng = None
        if self.model.sequence.crop == "random" and self.seed is not None and self.codes is None:
            rng = np.random.default_rng([self.seed, self.number, epoch, index])
        elif (index, drop) in self._cache:
            self._cache.move_to_end((index, drop))
            return self._cache[index, drop]
        try:
            example = self._build(self.index.conversation(index), index, drop, rng)
        except RowError as error:
            if self.data.on_error == "raise":
                raise
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= HOPELESS:
                raise type(error)(
                    f"{error}\n({HOPELESS} rows one after another cannot be used: nothing would be learnt)",
                    error.reason,
                ) from error
            self._skip(error)
            return None
        self._bad_in_a_row = 0
        if rng is None:
            self._cache_example((index, drop), example)
        return example

    def _build(
        self, conversation: Conversation, index: int, drop: bool, rng: np.random.Generator | None
    ) -> Example:
        example = build_example(
            conversation, self.tokenizer, self.model, self.codes, drop_prompt=drop, rng=rng
        )
        expected = self._needs(self.index.lengths[index : index + 1])[0].tolist()
        if drop:
            expected[0] = int(self.index.lengths[index, 4])
        if list(example.lengths) != expected:
            raise ImageError(
                f"{conversation.source}: takes {list(example.lengths)} tokens, crops, images and suffix, "
                f"but {expected} when it was measured: its images have changed since; delete "
                f"{self.index.folder} to measure again"
            )
        return example

    def _without_codes(self, usable: np.ndarray, codes: Codes) -> list[InvalidRow]:
        """Rows with an image that `codes` lacks."""
        about = codes.about
        bad: list[InvalidRow] = []
        if about.get("data") == self.index.data_digest() and not about["left_out"]:
            return bad  # made from this very data, and complete
        for row in np.flatnonzero(usable).tolist():
            location = self.index.records.location(row)
            try:
                with row_errors(location):
                    for image in codes_needed(self.index.conversation(row), self.model):
                        if image.name not in codes:
                            raise CodesError(
                                f"no VQ codes for {image.name} in {codes.path}: run `unitoken tokenize` again"
                            )
            except RowError as error:
                bad.append(InvalidRow(row, location, error.reason, str(error)))
        return bad

    def _cache_example(self, key: tuple[int, bool], example: Example) -> None:
        if (size := _bytes(example)) > CACHED_EXAMPLE_BYTES:
            return
        self._cache[key] = example
        self._cached_bytes += size
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])


def _bytes(example: Example) -> int:
    """Memory that an example takes: four arrays of its length, and pixels."""
    return example.tokens.nbytes * 4 + example.crops.nbytes + example.images.nbytes
