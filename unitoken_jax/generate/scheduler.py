"""Many prompts through few rows: finished ones make room for the next (continuous batching)."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.memory import check_memory
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import stream_keys
from unitoken_jax.setting_ranges import check_seed

BATCH = 16  # prompts written at one time
_NO_LIMIT = np.iinfo(np.int32).max


class Request(NamedTuple):
    """A prompt, the stream of its noise (`sampling.stream_keys`), and how many tokens it gets at most."""

    prompt: decode.Prompt
    stream: tuple[int, int]
    limit: int


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
    clock: decode.Clock = dataclasses.field(default_factory=decode.Clock)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected at least 1")


class DecodePlan(NamedTuple):
    """How tokens are chosen. `unconditional`: what each row's second stream starts with; None: no
    guidance."""

    sampling: decode.SamplingParams
    spec: decode.DecodeSpec = decode.DecodeSpec()
    unconditional: decode.Prompt | None = None


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


class _Bucket(NamedTuple):
    """The sizes that a group's programs are compiled for.

    `rows` are written together; new prompts are read `refill_rows` at one time, since one alone would stop
    the others too often. A row has `length` prompt tokens, `crops` crops, and `slots` tokens in the cache.
    """

    rows: int
    refill_rows: int
    length: int
    crops: int
    slots: int


class _Group:
    """Requests whose prompts share one length bucket, and the rows that they run in."""

    def __init__(self, session: DecodeSession, requests, waiting: Sequence[int], plan: DecodePlan):
        self.session, self.requests, self.plan = session, requests, plan
        self.waiting = list(waiting)  # numbers of requests that have no row yet
        model, prompts = session.model, [requests[i].prompt for i in waiting]
        length = decode.bucket_size(max(len(prompt.tokens) for prompt in prompts))
        rows = model.rows(min(session.batch, len(prompts)))
        self.bucket = _Bucket(
            rows,
            model.rows(max(rows // 4, 1)),
            length,
            decode.crop_bucket(prompts),
            length + len(plan.sampling.forced),
        )
        max_rows = rows + (self.bucket.refill_rows if len(prompts) > rows else 0)
        check_memory(model, max_rows * self._streams, self.bucket.slots, length)

    @property
    def _streams(self) -> int:
        return 2 if self.plan.spec.guided else 1

    def write(self, yield_every: int | None) -> Iterator[Completion]:
        """The group's completions, as `complete` yields them."""
        owners: list[int | None] = []  # the request of each row
        state: decode.DecodeState | None = None
        while self.waiting or any(request is not None for request in owners):
            free = [row for row, request in enumerate(owners) if request is None]
            if state is None or len(free) == len(owners):
                state = None  # frees its cache before the next one is made
                admitted, state = self._admit(self.bucket.rows)
                owners = [*admitted, *[None] * (self.bucket.rows - len(admitted))]
            elif self.waiting and len(free) >= min(self.bucket.refill_rows, len(self.waiting)):
                state = self._refill(state, owners, free)
            state = self._decode(state, len(owners), yield_every)
            fetch = self.session.model.fetch
            counts, limits, tokens = map(fetch, (state.counts, state.limits, state.tokens))
            for row, owner in enumerate(owners):
                if owner is None:
                    continue
                done = bool(counts[row] >= limits[row])
                if done or yield_every:
                    yield Completion(owner, tokens[row, : counts[row]].copy(), done)
                if done:
                    owners[row] = None

    def _refill(
        self, state: decode.DecodeState, owners: list[int | None], free: list[int]
    ) -> decode.DecodeState:
        """Gives `free` rows to waiting requests: notes them in `owners`, and returns the state with them."""
        refill_rows = self.bucket.refill_rows
        admitted, new = self._admit(min(refill_rows, len(free)))
        rows = np.full(refill_rows, self.bucket.rows, np.int32)  # what is beyond the last row is left out
        rows[: len(admitted)] = free[: len(admitted)]
        for row, request in zip(free, admitted):
            owners[row] = request
        return self.session.model.run(decode.replace_rows, state, new, rows)

    def _admit(self, number: int) -> tuple[list[int], decode.DecodeState]:
        """The next `number` requests at most, their prompts read into a state of `rows` or `refill_rows`
        rows."""
        admitted, self.waiting = self.waiting[:number], self.waiting[number:]
        bucket, model = self.bucket, self.session.model
        rows = bucket.rows if number == bucket.rows else bucket.refill_rows
        filler = rows - len(admitted)
        prompts = [self.requests[i].prompt for i in admitted]
        if self.plan.unconditional is not None and self.plan.spec.guided:
            # Rows come in two halves, so what fills the bucket must sit at the end of each.
            prompts += [prompts[0]] * filler + [self.plan.unconditional] * rows
        padded = decode.pad_prompts(prompts, rows * self._streams, bucket.length, bucket.crops)
        streams = np.array([self.requests[i].stream for i in admitted] + [(0, 0)] * filler, np.uint32)
        limits = np.array([self.requests[i].limit for i in admitted] + [0] * filler, np.int32)
        state = model.run(
            self.session.clock.prefill,
            model.module,
            model.network_params,
            model.shard_batch(padded),
            stream_keys(np.uint32(self.session.seed), streams),
            limits,
            self.plan.sampling,
            slots=bucket.slots,
            spec=self.plan.spec,
        )
        return admitted, state

    def _decode(self, state: decode.DecodeState, rows: int, yield_every: int | None) -> decode.DecodeState:
        """Until enough rows are free for new prompts, or all are finished, or `yield_every` passes are
        over."""
        min_unfinished = 1
        if self.waiting:
            min_unfinished = max(rows - min(self.bucket.refill_rows, len(self.waiting)) + 1, 1)
        model = self.session.model
        return model.run(
            self.session.clock.decode,
            model.module,
            model.network_params,
            state,
            self.plan.sampling,
            np.int32(min_unfinished),
            np.int32(yield_every or _NO_LIMIT),
            spec=self.plan.spec,
        )
