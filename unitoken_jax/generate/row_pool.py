"""Rows of one decode state that requests take and leave one by one: the device's half of continuous batching.

Which request gets which row, and when, is decided elsewhere: `scheduler.complete` for a list of requests,
`serve.scheduler` for those of many users.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.generate import decode
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import stream_keys
from unitoken_jax.generate.timing import Clock

NO_ID = -1  # an id that no row ends with
NO_LIMIT = np.iinfo(np.int32).max


class TokenSampling(NamedTuple):
    """How a request's tokens are chosen: the `seed` of its noise, `top_k` and `temperature`
    (`sampling.sample`), `guidance` (`sampling.apply_cfg`), and the ids that end it."""

    seed: int = 0
    top_k: int = 1
    temperature: float = 1.0
    guidance: float = 1.0
    ends: tuple[int, ...] = ()


class Request(NamedTuple):
    """A prompt, the stream of its noise (`sampling.stream_keys`), how many tokens it gets at most, and how
    they are chosen."""

    prompt: decode.Prompt
    stream: tuple[int, int]
    limit: int
    sampling: TokenSampling = TokenSampling()


class DecodePlan(NamedTuple):
    """What the requests that share a decode state have in common.

    `forced`, `ids`, `stride` as in `decode.SamplingParams`; `ends`: how many ids can end a row, at most.
    `unconditional`: what each row's second stream starts with, where `spec.guided`.
    """

    forced: np.ndarray
    ids: np.ndarray | None = None
    stride: int = 1
    ends: int = 0
    spec: decode.DecodeSpec = decode.DecodeSpec()
    unconditional: decode.Prompt | None = None


class ReadSize(NamedTuple):
    """The sizes of a program that reads prompts: `rows` of them, of `length` tokens and `crops` crops."""

    rows: int
    length: int
    crops: int = 0


class Progress(NamedTuple):
    """`tokens` int32[rows, M + 2 W] of which each row's first `counts` int32[rows] are written; it is at its
    end where they are as many as its `limits` int32[rows]."""

    tokens: np.ndarray
    counts: np.ndarray
    limits: np.ndarray


@dataclasses.dataclass(eq=False)
class RowPool:
    """`rows` rows, each with room for `slots` tokens, of prompt and answer together. `fill` comes first."""

    model: Runtime
    plan: DecodePlan
    rows: int
    slots: int
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.requests: list[Request | None] = [None] * self.rows  # the latest of each row
        self._state: Any = None  # a DecodeState, once there is one

    @property
    def streams(self) -> int:
        """Rows of the cache that a request takes: two where it is guided."""
        return 2 if self.plan.spec.guided else 1

    def fill(self, requests: Sequence[Request], size: ReadSize) -> None:
        """Begins anew: reads the prompts of `requests`, one to `size.rows` = `rows`, into the first rows."""
        self._state = None  # frees its cache before the next one is made
        self._state = self.prefill(requests, size, self.slots)
        self.requests = [*requests, *[None] * (self.rows - len(requests))]

    def refill(self, rows: Sequence[int], requests: Sequence[Request], size: ReadSize, slots: int) -> None:
        """Reads the prompts of `requests`, `size.rows` at most, with `slots` tokens each, into `rows`."""
        self.put(rows, requests, self.prefill(requests, size, slots))

    def put(self, rows: Sequence[int], requests: Sequence[Request], new: decode.DecodeState) -> None:
        """Gives `rows` to `requests`, whose prompts were read into the first rows of `new`."""
        at = np.full(len(new.limits), self.rows, np.int32)  # what is beyond the last row is left out
        at[: len(requests)] = rows[: len(requests)]
        for row, request in zip(rows, requests):
            self.requests[row] = request
        self._state = self.model.run(decode.replace_rows, self._state, new, at)

    def write(
        self, min_unfinished: int, max_passes: int | None = None, *, greedy: bool, slots: int | None = None
    ) -> None:
        """Writes until fewer than `min_unfinished` rows are unfinished, or `max_passes` are over. `greedy`:
        every row's tokens are the likeliest ones; `slots` as for `decode.decode_loop`."""
        self._state = self.model.run(
            self.clock.write,
            self.model.module,
            self.model.network_params,
            self._state,
            self.sampling_params(self.requests, self.rows),
            np.int32(min_unfinished),
            np.int32(max_passes or NO_LIMIT),
            spec=dataclasses.replace(self.plan.spec, greedy=greedy),
            **({} if slots is None else {"slots": slots}),
        )

    def progress(self) -> Progress:
        """What is written so far."""
        state = self._state
        return Progress(*map(self.model.fetch, (state.tokens, state.counts, state.limits)))

    def stop(self, rows: Sequence[int]) -> None:
        """Nothing more is written in `rows`."""
        limits = np.full(self.rows, NO_LIMIT, np.int32)
        limits[list(rows)] = 0
        lowered = self.model.run(_lower_limits, self._state.limits, limits)
        self._state = self._state._replace(limits=lowered)

    def prefill(
        self, requests: Sequence[Request], size: ReadSize, slots: int, features: Any = None
    ) -> decode.DecodeState:
        """`size.rows` rows of `slots` tokens that begin with the prompts of `requests`; `features`: what the
        network made of their crops, where it has read them already."""
        padded = self.padded([request.prompt for request in requests], size)
        return self.model.run(
            self.clock.prefill,
            self.model.module,
            self.model.network_params,
            self.model.shard_batch(padded._replace(features=features)),
            *self.row_settings(requests, size.rows),
            slots=slots,
            spec=self.plan.spec,
        )

    def padded(self, prompts: list[decode.Prompt], size: ReadSize) -> decode.Prompts:
        """`prompts`, and what follows them in their second streams, as the network reads them."""
        if self.plan.spec.guided:
            # Rows come in two halves, so what fills the bucket must sit at the end of each.
            filler = [prompts[0]] * (size.rows - len(prompts))
            assert self.plan.unconditional is not None
            prompts = prompts + filler + [self.plan.unconditional] * size.rows
        return decode.pad_prompts(prompts, size.rows * self.streams, size.length, size.crops)

    def row_settings(self, requests: Sequence[Request], rows: int) -> tuple:
        """(keys of their noise, limits, `SamplingParams`) of `requests` in the first of `rows` rows."""
        filler = rows - len(requests)
        seeds = np.array([request.sampling.seed for request in requests] + [0] * filler, np.uint32)
        streams = np.array([request.stream for request in requests] + [(0, 0)] * filler, np.uint32)
        limits = np.array([request.limit for request in requests] + [0] * filler, np.int32)
        return stream_keys(seeds, streams), limits, self.sampling_params(requests, rows)

    def sampling_params(self, requests: Sequence[Request | None], rows: int) -> decode.SamplingParams:
        """How the tokens of `rows` rows are chosen, the first of which belong to `requests`."""
        settings = [TokenSampling() if request is None else request.sampling for request in requests]
        settings += [TokenSampling()] * (rows - len(settings))
        ends = np.full((rows, self.plan.ends), NO_ID, np.int32)
        for row, sampling in enumerate(settings):
            ends[row, : len(sampling.ends)] = sampling.ends
        return decode.SamplingParams(
            top_k=np.array([sampling.top_k for sampling in settings], np.int32),
            temperature=np.array([sampling.temperature for sampling in settings], np.float32),
            guidance=np.array([sampling.guidance for sampling in settings], np.float32),
            forced=self.plan.forced,
            ids=self.plan.ids,
            ends=ends,
            stride=np.int32(self.plan.stride),
        )


@jax.jit
def _lower_limits(limits, at_most):
    return jnp.minimum(limits, at_most)
