"""Many prompts through few rows: finished ones make room for the next (continuous batching)."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.memory import check_memory
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import stream_keys

BATCH = 16  # prompts written at one time
_NO_END = np.iinfo(np.int32).max


class Request(NamedTuple):
    """A prompt, the stream of its noise (`sampling.stream_keys`), and how many tokens it gets at most."""

    prompt: decode.Prompt
    stream: tuple[int, int]
    limit: int


class Completion(NamedTuple):
    """What job number `job` has so far: tokens int32[n], all of it where `done`."""

    job: int
    tokens: np.ndarray
    done: bool


def checksum(prompt: decode.Prompt) -> int:
    """What tells prompts apart, for the streams of their noise."""
    crops = b"" if prompt.crops is None else prompt.crops.tobytes()
    return zlib.crc32(crops, zlib.crc32(np.asarray(prompt.tokens, np.int32).tobytes()))


def rng_streams(prompts: Sequence[decode.Prompt]) -> list[tuple[int, int]]:
    """(checksum of the prompt, how many equal ones came before); see `sampling.stream_keys`."""
    seen: Counter[int] = Counter()
    streams = []
    for prompt in prompts:
        prompt_checksum = checksum(prompt)
        streams.append((prompt_checksum, seen[prompt_checksum]))
        seen[prompt_checksum] += 1
    return streams


def complete(
    model: Runtime,
    jobs: Sequence[Request],
    rules: decode.SamplingParams,
    shape: decode.DecodeSpec,
    clock: decode.Clock,
    *,
    seed: int = 0,
    batch: int = BATCH,
    every: int | None = None,
    unconditional: decode.Prompt | None = None,
) -> Iterator[Completion]:
    """Continues every job, `batch` at one time, longest prompts first; yields each when it is done.

    `every`: also yields what the others have, after so many passes. `unconditional`: what the second stream
    of each row starts with, where `shape.guided`. `clock` notes the times.
    Raises ValueError where the cache does not fit into memory.
    """
    if not jobs:
        return
    params = model.network_params
    order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].prompt.tokens))
    while order:
        # Prompts of like lengths together: less padding, one compiled shape.
        longest = decode.bucket_size(len(jobs[order[0]].prompt.tokens))
        same = sum(decode.bucket_size(len(jobs[i].prompt.tokens)) == longest for i in order)
        number = max(same, batch)
        group = _Group(model, params, jobs, order[:number], rules, shape, clock, seed, batch, unconditional)
        order = order[number:]
        yield from group.write(every)


class _Group:
    """Jobs whose prompts share one length bucket, and the rows that they run in."""

    def __init__(self, model, params, jobs, waiting, rules, shape, clock, seed, batch, unconditional):
        self.model, self.params, self.jobs, self.waiting = model, params, jobs, list(waiting)
        self.rules, self.shape, self.clock, self.seed = rules, shape, clock, seed
        self.unconditional = unconditional
        prompts = [jobs[i].prompt for i in waiting]
        self.length = decode.bucket_size(max(len(prompt.tokens) for prompt in prompts))
        self.crops = decode.crop_bucket(prompts)
        self.slots = self.length + len(rules.forced)
        self.rows = model.rows(min(batch, len(prompts)))
        # So many rows get new prompts together: one at a time would stop the others too often.
        self.fresh = model.rows(max(self.rows // 4, 1))
        most = self.rows + (self.fresh if len(prompts) > self.rows else 0)
        check_memory(model, most * (2 if shape.guided else 1), self.slots, self.length)

    def write(self, every: int | None) -> Iterator[Completion]:
        owners: list[int | None] = []  # the job of each row
        state: Any = None
        while self.waiting or any(job is not None for job in owners):
            free = [row for row, job in enumerate(owners) if job is None]
            if len(free) == len(owners):
                state = None  # frees its cache before the next one is made
                admitted, state = self._admit(self.rows)
                owners = [*admitted, *[None] * (self.rows - len(admitted))]
            elif self.waiting and len(free) >= min(self.fresh, len(self.waiting)):
                taken, new = self._admit(min(self.fresh, len(free)))
                rows = np.full(self.fresh, self.rows, np.int32)  # what is beyond the last row is left out
                rows[: len(taken)] = free[: len(taken)]
                for row, job in zip(free, taken):
                    owners[row] = job
                state = self.model.run(decode.replace_rows, state, new, rows)
            state = self._proceed(state, owners, every)
            counts, limits, tokens = map(self.model.fetch, (state.counts, state.limits, state.tokens))
            for row, owner in enumerate(owners):
                if owner is None:
                    continue
                done = bool(counts[row] >= limits[row])
                if done or every:
                    yield Completion(owner, tokens[row, : counts[row]].copy(), done)
                if done:
                    owners[row] = None

    def _admit(self, number: int) -> tuple[list[int], decode.State]:
        """The next `number` jobs at most, their prompts read into a state of `rows` or `fresh` rows."""
        taken, self.waiting = self.waiting[:number], self.waiting[number:]
        rows = self.rows if number == self.rows else self.fresh
        filler = rows - len(taken)
        prompts = [self.jobs[i].prompt for i in taken]
        if self.shape.guided:
            # Rows come in two halves, so what fills the bucket must sit at the end of each.
            prompts += [prompts[0]] * filler + [self.unconditional] * rows
        stacked = decode.pad_prompts(prompts, rows * (2 if self.shape.guided else 1), self.length, self.crops)
        streams = np.array([self.jobs[i].stream for i in taken] + [(0, 0)] * filler, np.uint32)
        limits = np.array([self.jobs[i].limit for i in taken] + [0] * filler, np.int32)
        state = self.model.run(
            self.clock.run,
            "first",
            decode.prefill,
            self.model.module,
            self.params,
            self.model.shard_batch(stacked),
            stream_keys(np.uint32(self.seed), streams),
            limits,
            self.rules,
            slots=self.slots,
            shape=self.shape,
        )
        return taken, state

    def _proceed(self, state: decode.State, owners: list, every: int | None) -> decode.State:
        """Until enough rows are free for new prompts, or all are finished, or `every` passes are over."""
        least = 1
        if self.waiting:
            least = max(len(owners) - min(self.fresh, len(self.waiting)) + 1, 1)
        state, passes = self.model.run(
            self.clock.run,
            "rest",
            decode.decode_loop,
            self.model.module,
            self.params,
            state,
            self.rules,
            np.int32(least),
            np.int32(every or _NO_END),
            shape=self.shape,
        )
        self.clock.steps += int(passes)
        return state
