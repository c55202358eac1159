"""Conversation files as endless, random-access rows: row k of a source, and of a weighted mixture of sources.

Everything is decided by (seed, epoch, example number), so any row can be made alone, on any process.
"""

import collections
import logging
from collections.abc import Callable, Sequence

import numpy as np

from unitoken_jax.config import DataConfig, ModelConfig, SourceConfig
from unitoken_jax.host import pack, sequence
from unitoken_jax.host.codes import codes_path, read_codes
from unitoken_jax.host.conversation import Conversation, ConversationError, PictureFile, read_conversations
from unitoken_jax.host.picture import PictureError
from unitoken_jax.host.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CACHE_BYTES = 256 << 20  # decoded examples kept, all of a source together
CACHED_EXAMPLE_BYTES = 64 << 10  # larger ones are not worth it: real pictures would only push each other out
_DROP = 0x0D  # salt of the prompt-dropout stream, so that it is not the shuffle's


class Source:
    """One conversation file, measured once; `row(k)` is the k-th row of its endless epochs."""

    def __init__(
        self,
        config: SourceConfig,
        number: int,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        seed: int | None,
    ):
        """Reads and measures the file; pictures are not decoded.

        Args:
          number: the source's place among its siblings, part of every random decision.
          seed: None for validation: file order, no dropout, centre crops.
        Raises ConversationError, PictureError or CodesError, or skips and reports, as `data.on_error` says.
        """
        self.number, self.data, self.model, self.tokenizer, self.seed = number, data, model, tokenizer, seed
        self.path, self.skipped = config.path, 0
        on_error = self._skip if data.on_error == "skip" else None
        found = read_conversations(config.path, config.pictures, on_error)
        self.codes = read_codes(codes_path(config.path), model) if data.codes == "offline" else None
        self.conversations: list[Conversation] = []
        full, dropped = [], []
        for conversation in found:
            try:
                lengths = self._measure(conversation)
            except (ConversationError, PictureError) as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            self.conversations.append(conversation)
            full.append(lengths[0])
            dropped.append(lengths[1])
        if not self.conversations:
            raise ConversationError(f"{config.path}: holds no usable conversation")
        self.lengths = np.array(full, np.int64)
        self._dropped_lengths = np.array(dropped, np.int64)
        self._droppable = self._dropped_lengths[:, 0] > 0
        self._plans: collections.OrderedDict[int, tuple[pack.Plan, np.ndarray]] = collections.OrderedDict()
        self._ends = [0]  # rows before epoch e
        self._cache: collections.OrderedDict[tuple[int, bool], sequence.Example] = collections.OrderedDict()
        self._cached_bytes = 0

    def _skip(self, error: Exception) -> None:
        self.skipped += 1
        log.warning("left out: %s", error)

    def _measure(self, conversation: Conversation) -> tuple[sequence.Lengths, sequence.Lengths]:
        """Lengths of the whole and of the prompt-dropped example (zeros where there is none)."""
        source = conversation.source
        if self.codes is not None:
            for turn in conversation.turns:
                if sequence.has_codes(turn, self.model):
                    for part in turn.parts:
                        if isinstance(part, PictureFile) and part.name not in self.codes:
                            raise PictureError(
                                f"{source}: no VQ codes for {part.name} in {codes_path(self.path)}: "
                                "run `unitoken tokenize` again"
                            )
        online = self.codes is None
        whole = sequence.length(conversation, self.tokenizer, self.model, online=online)
        if reason := pack.misfit(whole, self.data):
            raise ConversationError(f"{source}: {reason}")
        dropped = sequence.Lengths(0, 0, 0)
        if self.seed is not None and self.data.prompt_dropout and sequence.is_text_to_image(conversation):
            dropped = sequence.length(
                conversation, self.tokenizer, self.model, online=online, drop_prompt=True
            )
        return whole, dropped

    def drops(self, epoch: int) -> np.ndarray:
        """bool[N]: which examples go without their prompt in `epoch`."""
        if self.seed is None:
            return np.zeros(len(self.lengths), bool)
        draws = np.random.default_rng([self.seed, self.number, epoch, _DROP]).random(len(self.lengths))
        return self._droppable & (draws < self.data.prompt_dropout)

    def lengths_in(self, epoch: int) -> np.ndarray:
        """int64[N, 3]: what each example takes of a row in `epoch` (columns as in `Lengths`)."""
        return np.where(self.drops(epoch)[:, None], self._dropped_lengths, self.lengths)

    def plan(self, epoch: int) -> tuple[pack.Plan, np.ndarray]:
        """The epoch's rows, and bool[N]: which examples go without their prompt."""
        if epoch in self._plans:
            return self._plans[epoch]
        seed = None if self.seed is None else [self.seed, self.number, epoch]
        made = pack.make_plan(self.lengths_in(epoch), pack.budget(self.data), seed), self.drops(epoch)
        self._plans[epoch] = made
        while len(self._plans) > 2:
            self._plans.popitem(last=False)
        return made

    def row(self, k: int) -> list[sequence.Example]:
        """The examples of the k-th row, counted from the start of epoch 0."""
        while self._ends[-1] <= k:
            self._ends.append(self._ends[-1] + len(self.plan(len(self._ends) - 1)[0]))
        epoch = int(np.searchsorted(self._ends, k, side="right")) - 1
        plan, drop = self.plan(epoch)
        examples = plan[k - self._ends[epoch]].tolist()
        made = [self.example(epoch, index, bool(drop[index])) for index in examples]
        return [example for example in made if example is not None]

    def example(self, epoch: int, index: int, drop: bool) -> sequence.Example | None:
        """Example `index` as epoch `epoch` sees it; None where its picture is bad and errors are skipped."""
        random = self.model.sequence.crop == "random" and self.seed is not None and self.codes is None
        if not random and (index, drop) in self._cache:
            self._cache.move_to_end((index, drop))
            return self._cache[index, drop]
        rng = np.random.default_rng([self.seed, self.number, epoch, index]) if random else None
        try:
            example = sequence.build(
                self.conversations[index], self.tokenizer, self.model, self.codes, drop_prompt=drop, rng=rng
            )
        except PictureError as error:
            if self.data.on_error == "raise":
                raise
            self._skip(error)
            return None
        if not random:
            self._keep((index, drop), example)
        return example

    def _keep(self, key: tuple[int, bool], example: sequence.Example) -> None:
        if (size := _bytes(example)) > CACHED_EXAMPLE_BYTES:
            return
        self._cache[key] = example
        self._cached_bytes += size
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])


def _bytes(example: sequence.Example) -> int:
    return example.tokens.nbytes * 4 + example.crops.nbytes + example.pictures.nbytes


class Mixture:
    """Rows of several sources in fixed proportions: weights are shares of rows."""

    BLOCK = 1024  # rows after which the pattern of sources repeats

    def __init__(self, weights: Sequence[float], row: Sequence[Callable[[int], list[sequence.Example]]]):
        """`row[s](j)` gives the j-th row of source s. Raises ValueError for a weight that cannot be kept."""
        self._row = row
        shares = np.array(weights, np.float64)
        if np.any(~np.isfinite(shares)) or np.any(shares <= 0):
            raise ValueError(f"data.sources weights must be above 0, found {list(weights)}")
        block = self.BLOCK if len(shares) > 1 else 1
        exact = shares / shares.sum() * block
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: block - counts.sum()]] += 1
        if np.any(counts == 0):
            raise ValueError(f"data.sources weights {list(weights)}: each must be at least 1/{block} of all")
        # Source s's j-th row of a block stands at (j + 1/2) / counts[s] of it: as even as can be.
        sources = np.repeat(np.arange(len(counts)), counts)
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(places, kind="stable")
        self._pattern = sources[order]
        self._within = np.concatenate([np.arange(count) for count in counts])[order]
        self._counts = counts

    def locate(self, k: int) -> tuple[int, int]:
        """(source, row of that source) of row k."""
        block, place = divmod(k, len(self._pattern))
        source = int(self._pattern[place])
        return source, int(block * self._counts[source] + self._within[place])

    def row(self, k: int) -> list[sequence.Example]:
        """The examples of row k."""
        source, place = self.locate(k)
        return self._row[source](place)
