"""A pool of rows for many users: every program that it runs is compiled at the start, and none after it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.memory import cache_bytes
from unitoken_jax.generate.row_pool import DecodePlan, Progress, ReadSize, Request, RowPool
from unitoken_jax.generate.runtime import Runtime

SHORT, LONG = 64, 512  # tokens of the two windows in which prompts are read
# Passes read a part of each row's slots, where that is enough: the whole, a quarter or a sixteenth.
SLOT_SHARES = (16, 4)
MIN_SLOTS = 128


class PoolSize(NamedTuple):
    """What a pool has room for: `rows` at one time, and prompts of `prompt_tokens` and `crops`."""

    rows: int
    prompt_tokens: int
    crops: int


class ServingPool:
    """Rows that are all in use, or free, at any time, behind the interface that `serve.scheduler` drives.

    Short prompts without crops are read several at one time, other prompts that fit a window one by one, and
    longer ones window by window (`begin`, `advance`), in a cache of their own. `reset` comes first.
    """

    def __init__(self, model: Runtime, plan: DecodePlan, size: PoolSize):
        self.model, self.size = model, size
        self.rows = model.rows(size.rows)
        self.windows = sorted(
            {min(window, decode.bucket_size(size.prompt_tokens)) for window in (SHORT, LONG)}
        )
        # Whole windows, so that the padding of the last one has room.
        self.slots = -(-size.prompt_tokens // self.windows[-1]) * self.windows[-1] + len(plan.forced)
        self._pool = RowPool(model, plan, self.rows, self.slots)
        self._read_rows = sorted({model.rows(1), model.rows(max(self.rows // 4, 1))})
        parts = {max(-(-self.slots // share), MIN_SLOTS) for share in SLOT_SHARES}
        self._slots = sorted(part for part in parts if part < self.slots)
        self._written: Progress
        self._long: _LongPrompt | None = None
        self._long_cache: Any = None
        self._features: Any = None

    @property
    def read_at_once(self) -> int:
        """How many prompts `admit` takes, at most."""
        return self._read_rows[-1]

    @property
    def passes(self) -> int:
        """Passes of the decoder since the start."""
        return self._pool.clock.timing.passes

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that the pool holds at most: of all rows, of the part of them that a
        quantum works on, and of prompts that are being read."""
        rows, streams = [self.rows, self.rows, self._read_rows[0], self._read_rows[-1]], self._pool.streams
        slots = [self.slots, max(self._slots, default=0), self.slots, self.windows[-1]]
        return sum(cache_bytes(self.model, a * streams, b) for a, b in zip(rows, slots))

    def reset(self) -> None:
        """Begins anew, with all rows free."""
        self._long = self._long_cache = self._features = None
        self._pool.fill([_empty_request(1)], ReadSize(self.rows, self.windows[0]))
        rows, model = self._read_rows[0] * self._pool.streams, self.model
        self._long_cache = self._as_result(model.run(_empty_cache, model.module, rows, self.slots))
        if self.size.crops:
            count = self.size.crops * model.config.siglip.patches
            empty = np.zeros((rows, count, model.config.decoder.width), model.module.dtype)
            self._features = model.shard_batch(self._as_result(jax.device_put(empty)))
        self._fetch()

    def _as_result(self, tree):
        """`tree` as bound to its device as programs' results are: they come back as later arguments, and what
        differs in that compiles a program anew."""
        leaf = jax.tree.leaves(self.model.network_params)[0]
        bound = self.model.mesh is None and getattr(leaf, "committed", False)
        return jax.device_put(tree, leaf.sharding) if bound else tree

    def programs(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """(what it does, a call that runs it) of every program, once `reset` has run."""
        side = self.model.config.siglip.image_size
        image = np.zeros((min(self.size.crops, 2), side, side, 3), np.uint8)
        for window in self.windows:
            request = _empty_request(window, image)
            yield f"reading {window} tokens", functools.partial(self.admit, [0], [request])
        few = [_empty_request(1)] * self.read_at_once
        yield f"reading {len(few)} prompts", functools.partial(self.admit, range(len(few)), few)
        if self.size.prompt_tokens > self.windows[-1]:
            yield "reading long prompts", self._read_long
        for slots in (*self._slots, None):
            for greedy in {self._pool.plan.ids is None, False}:
                run = functools.partial(self._pool.write, 1, 1, greedy=greedy, slots=slots)
                yield f"writing in {slots or self.slots} slots", run
        yield "stopping", functools.partial(self.stop, [0])

    def _read_long(self) -> None:
        self.begin(0, _empty_request(self.windows[-1] + 1))
        while not self.advance():
            pass

    def is_long(self, request: Request) -> bool:
        """Whether the prompt takes more than one window."""
        return len(request.prompt.tokens) > self.windows[-1]

    def admit(self, rows: Sequence[int], requests: Sequence[Request]) -> None:
        """Reads prompts, `read_at_once` at most and none of them long, into `rows`, and chooses their first
        tokens."""
        together = [pair for pair in zip(rows, requests) if self._is_short(pair[1])]
        others = [[pair] for pair in zip(rows, requests) if not self._is_short(pair[1])]
        for group in [together, *others]:
            if group:
                self._read(*map(list, zip(*group)))
        self._fetch()

    def _is_short(self, request: Request) -> bool:
        tokens, _, crops = request.prompt
        return len(tokens) <= self.windows[0] and (crops is None or not len(crops))

    def _read(self, rows: list[int], requests: list[Request]) -> None:
        """Prompts that fit one window; only where there is one of them may it have crops."""
        number = next(number for number in self._read_rows if number >= len(requests))
        length = max(len(request.prompt.tokens) for request in requests)
        window = next(window for window in self.windows if window >= length)
        features = None
        if number == self._read_rows[0]:
            features = self._read_crops(requests[0].prompt)
        size = ReadSize(number, window)
        self._pool.put(rows, requests, self._pool.prefill(requests, size, window, features))

    def _read_crops(self, prompt: decode.Prompt):
        """The features of the prompt's crops, in the first row of a buffer of fixed size."""
        model = self.model
        for number, crop in enumerate(() if prompt.crops is None else prompt.crops):
            start = np.int32(number * model.config.siglip.patches)
            arguments = model.module, model.network_params, self._features, crop, start
            self._features = model.run(_read_crop, *arguments)
        return self._features

    def begin(self, row: int, request: Request) -> None:
        """Begins to read a long prompt for `row`, which is no other's from now on."""
        self._long = _LongPrompt(row, request, 0)

    def advance(self) -> bool:
        """Reads the next window of the long prompt, at first also its crops; True: it was the last."""
        assert self._long is not None
        row, request, start = self._long
        window, number, model = self.windows[-1], self._read_rows[0], self.model
        tokens, index, _ = request.prompt
        if start == 0:
            self._read_crops(request.prompt)
        last = start + window >= len(tokens)
        part = decode.Prompt(tokens[start : start + window], index[start : start + window])
        padded = self._pool.padded([part], ReadSize(number, window))
        starts = np.zeros(number * self._pool.streams, np.int32)
        starts[:number] = start  # a second stream is read again, as it was
        state = model.run(
            decode.prefill_window,
            model.module,
            model.network_params,
            self._long_cache,
            model.shard_batch(padded._replace(features=self._features)),
            starts,
            *self._pool.row_settings([request if last else request._replace(limit=0)], number),
            spec=self._pool.plan.spec,
        )
        self._long_cache = state.cache
        self._long = None if last else _LongPrompt(row, request, start + window)
        if last:
            self._pool.put([row], [request], state)
            self._fetch()
        return last

    def abandon(self) -> None:
        """The long prompt is not read on."""
        self._long = None

    def stop(self, rows: Sequence[int]) -> None:
        """Nothing more is written in `rows`."""
        self._pool.stop(rows)
        self._fetch()

    def write(self, min_unfinished: int, max_passes: int) -> int:
        """Writes for `max_passes`, or until fewer than `min_unfinished` rows are unfinished; the passes it
        took."""
        width, needed, greedy = max(self._pool.plan.spec.window, 2), 0, self._pool.plan.ids is None
        _, counts, limits = self._written
        for row, request in enumerate(self._pool.requests):
            if request is not None and counts[row] < limits[row]:
                later = min(counts[row] + max_passes * width, limits[row])
                needed = max(needed, len(request.prompt.tokens) + int(later))
                greedy = greedy and request.sampling.top_k == 1
        slots = next((slots for slots in self._slots if slots >= needed), None)
        before = self.passes
        self._pool.write(min_unfinished, max_passes, greedy=greedy, slots=slots)
        self._fetch()
        return self.passes - before

    def progress(self) -> Progress:
        """What is written so far; a free row's means nothing."""
        return self._written

    def _fetch(self) -> None:
        self._written = self._pool.progress()


class _LongPrompt(NamedTuple):
    """A prompt for `row` of which the first `start` tokens are read."""

    row: int
    request: Request
    start: int


def _empty_request(tokens: int, crops: np.ndarray | None = None) -> Request:
    """A request that ends at once, with a prompt of so many tokens."""
    return Request(decode.Prompt(np.zeros(tokens, np.int32), np.full(tokens, -1, np.int32), crops), (0, 0), 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty_cache(module, rows: int, slots: int):
    return module.init_cache(rows, slots)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_crop(module, params, features, crop, start):
    """`features` [B, F, D] with those of `crop` uint8[S, S, 3] in its first row, from `start` on."""
    new = module.apply({"params": params}, crop[None, None], method="features")
    return jax.lax.dynamic_update_slice(features, new.astype(features.dtype), (0, start, 0))
