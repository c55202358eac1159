"""Many prompts through few rows: finished ones make room for the next (continuous batching)."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.memory import check_memory
from unitoken_jax.generate.row_pool import DecodePlan, ReadSize, Request, RowPool
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.timing import Clock
from unitoken_jax.setting_ranges import check_seed

BATCH = 16  # prompts written at one time


class Completion(NamedTuple):
    """What request number `request` has so far: tokens int32[n], all of it where `done`."""

    request: int
    tokens: np.ndarray
    done: bool


@dataclasses.dataclass(frozen=True, eq=False)
class DecodeSession:
    """What all decoding of one call shares: the model, the seed, `batch` rows at one time, and a clock.

    Raises ValueError for a seed that does not fit 32 bits, and a batch below 1.
    """

    model: Runtime
    seed: int = 0
    batch: int = BATCH
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected at least 1")


def checksum(prompt: decode.Prompt) -> int:
    """A number of 32 bits that tells prompts apart, for the streams of their noise."""
    crops = b"" if prompt.crops is None else prompt.crops.tobytes()
    return zlib.crc32(crops, zlib.crc32(np.asarray(prompt.tokens, np.int32).tobytes()))


def rng_streams(prompts: Sequence[decode.Prompt]) -> list[tuple[int, int]]:
    """(checksum of the prompt, how many equal ones came before); see `sampling.stream_keys`."""
    counts: Counter[int] = Counter()
    streams = []
    for prompt in prompts:
        prompt_checksum = checksum(prompt)
        streams.append((prompt_checksum, counts[prompt_checksum]))
        counts[prompt_checksum] += 1
    return streams


def complete(
    session: DecodeSession,
    requests: Sequence[Request],
    plan: DecodePlan,
    yield_every: int | None = None,
) -> Iterator[Completion]:
    """Continues every request, `session.batch` at one time, longest prompts first; yields each when it is
    done.

    `yield_every`: also yields what the others have, after so many passes.
    Raises ValueError where the cache does not fit into memory.
    """
    if not requests:
        return
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt.tokens))
    while order:
        # Prompts of like lengths together: less padding, one compiled shape.
        longest = decode.bucket_size(len(requests[order[0]].prompt.tokens))
        same = sum(decode.bucket_size(len(requests[i].prompt.tokens)) == longest for i in order)
        number = max(same, session.batch)
        group = _Group(session, requests, order[:number], plan)
        order = order[number:]
        yield from group.write(yield_every)


class _Group:
    """Requests whose prompts share one length bucket, and the rows that they run in."""

    def __init__(self, session: DecodeSession, requests, waiting: Sequence[int], plan: DecodePlan):
        self.requests = requests
        self.waiting = list(waiting)  # numbers of requests that have no row yet
        model, prompts = session.model, [requests[i].prompt for i in waiting]
        length = decode.bucket_size(max(len(prompt.tokens) for prompt in prompts))
        rows = model.rows(min(session.batch, len(prompts)))
        self.size = ReadSize(rows, length, decode.crop_bucket(prompts))
        # One new prompt alone would stop the others too often.
        self.refill_size = self.size._replace(rows=model.rows(max(rows // 4, 1)))
        self.pool = RowPool(model, plan, rows, length + len(plan.forced), session.clock)
        max_rows = rows + (self.refill_size.rows if len(prompts) > rows else 0)
        check_memory(model, max_rows * self.pool.streams, self.pool.slots, length)

    def write(self, yield_every: int | None) -> Iterator[Completion]:
        """The group's completions, as `complete` yields them."""
        pool = self.pool
        owners: list[int | None] = [None] * pool.rows  # the request of each row
        while self.waiting or any(request is not None for request in owners):
            free = [row for row, request in enumerate(owners) if request is None]
            admitted: list[int] = []
            if len(free) == len(owners):
                admitted = self._next(pool.rows)
                pool.fill([self.requests[i] for i in admitted], self.size)
            elif self.waiting and len(free) >= min(self.refill_size.rows, len(self.waiting)):
                admitted = self._next(min(self.refill_size.rows, len(free)))
                pool.refill(free, [self.requests[i] for i in admitted], self.refill_size, pool.slots)
            for row, request in zip(free, admitted):
                owners[row] = request
            min_unfinished = 1
            if self.waiting:
                min_unfinished = max(pool.rows - min(self.refill_size.rows, len(self.waiting)) + 1, 1)
            pool.write(min_unfinished, yield_every, greedy=pool.plan.spec.greedy)
            tokens, counts, limits = pool.progress()
            for row, owner in enumerate(owners):
                if owner is None:
                    continue
                done = bool(counts[row] >= limits[row])
                if done or yield_every:
                    yield Completion(owner, tokens[row, : counts[row]].copy(), done)
                if done:
                    owners[row] = None

    def _next(self, number: int) -> list[int]:
        """Takes the next `number` requests at most off the waiting ones."""
        admitted, self.waiting = self.waiting[:number], self.waiting[number:]
        return admitted
