"""Prompts -> tokens, two compiled programs a shape bucket: prefill, then a loop that stays on the device.

Prompts are right-padded to a bucket's length and each row goes on at its own length: the cache slot of a
token is its position, so what a padded row holds beyond its length is overwritten before it is ever seen.
Whatever a user varies between calls (text, seed, top-k, temperature, guidance, the answer's limit) is
traced, not compiled in.

One loop writes text and images, with speculation or without. A token is a pure function of what stands
before it: the best of logits + noise, where the noise is its place's own (sampling.py). So one pass reads a
window of W tokens, the last settled one and drafts, and gives the true token after each. Drafts that it
confirms are settled; the rest are replaced by what it gave, and read again (Jacobi iteration). The result is
that of plain decoding, W = 1, token by token: the one fixed point, reached in fewer passes. Because a draft
and its check share their noise, they agree more often than independent draws (speculative Jacobi decoding,
arXiv 2410.01699, with the coupling of arXiv 2510.24211). An id that the grammar forces is a draft that is
always right. Letters: B rows, T prompt tokens, C crops, D width, M places for what is written.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.generate.sampling import apply_cfg, position_keys, sample
from unitoken_jax.model.decoder import Cache

MODEL_CHOOSES = -1  # in Rules.forced: the model chooses


class Prompt(NamedTuple):
    """One prompt: tokens int32[T], image_feature_index int32[T], crops uint8[C, S, S, 3] (C may be 0)."""

    tokens: np.ndarray
    image_feature_index: np.ndarray
    crops: np.ndarray | None = None


class Prompts(NamedTuple):
    """Padded prompts. `lengths` is 0 in rows that only fill the bucket; `crops` is None if no row has any."""

    tokens: Any  # int32[B, T]
    lengths: Any  # int32[B]
    image_feature_index: Any  # int32[B, T]
    crops: Any  # uint8[B, C, S, S, 3] | None


class SamplingParams(NamedTuple):
    """How tokens are chosen, traced: another value compiles nothing.

    `forced` int32[M]: the id at each place after the prompt, or FREE. `ids` int32[N]: those that may be
    chosen; None: all. `ends` int32[E]: those that end a row. `stride`: places to the nearest similar one, an
    unread token's first draft (an image's row above).
    """

    top_k: Any
    temperature: Any
    guidance: Any
    forced: Any
    ids: Any
    ends: Any
    stride: Any = np.int32(1)


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What is compiled in. `window`: tokens a pass reads, 1 is plain decoding. `guided`: conditional rows are
    followed by as many unconditional ones, which read the same. `greedy`: the best token, no noise."""

    window: int = 1
    guided: bool = False
    greedy: bool = False


class State(NamedTuple):
    """Rows being written. Of `tokens` int32[B, M + 2 W] the first `counts` are settled, the rest drafts; the
    last settled one is not read yet. A row ends at its `limits`, at once where that is 0."""

    cache: Cache  # of B rows, 2 B where guided
    lengths: Any  # int32[B or 2 B], of the prompts
    keys: Any  # key[B]
    tokens: Any
    counts: Any  # int32[B]
    limits: Any  # int32[B]


class Timing(NamedTuple):
    """Where a batch's seconds went; its rows took them together.

    `compiling`: tracing, and compiling what the caches did not hold. `first`: reading the prompts, which
    gives the first token. `rest`: `steps` passes, each of a token a row or more.
    """

    compiling: float
    first: float
    rest: float
    steps: int

    def __str__(self) -> str:
        each = 1e3 * self.rest / max(self.steps, 1)
        return (
            f"first token after {self.first:.3f} s, then {each:.2f} ms a pass ({self.steps} passes, "
            f"{self.rest:.2f} s); compiling took {self.compiling:.2f} s"
        )


class Clock:
    """Runs compiled programs and notes how long they took to be ready and to run."""

    def __init__(self):
        self.compiling, self.first, self.rest, self.steps = 0.0, 0.0, 0.0, 0

    def run(self, kind: str, program, *arguments, **settings):
        """`kind`: "first" or "rest", where the time belongs."""
        start = time.perf_counter()
        out = program(*arguments, **settings)  # comes back once the program is compiled and under way
        began = time.perf_counter()
        jax.block_until_ready(out)
        self.compiling += began - start
        setattr(self, kind, getattr(self, kind) + time.perf_counter() - began)
        return out

    @property
    def timing(self) -> Timing:
        return Timing(self.compiling, self.first, self.rest, self.steps)


def bucket_size(number: int, least: int = 64, an_octave: int = 2) -> int:
    """The next of least, ..., 2 * least, ..., with `an_octave` equally wide steps between doublings."""
    top = max(least, 1)
    while top < number:
        top *= 2
    step = max(top // 2 // an_octave, 1)
    return top if top == least else -(-number // step) * step


def batch_rows(number: int, multiple: int = 1) -> int:
    """Rows of the program that runs `number` prompts: a power of two, rounded up to whole `multiple`s."""
    rows = 1 << max(number - 1, 0).bit_length()
    return -(-rows // multiple) * multiple


def pad_prompts(
    prompts: Sequence[Prompt], rows: int, length: int | None = None, crops: int | None = None
) -> Prompts:
    """Pads `prompts` to `rows` rows of `length` tokens and `crops` crops; None: their bucket."""
    length = length or bucket_size(max(len(prompt.tokens) for prompt in prompts))
    crops = crop_bucket(prompts) if crops is None else crops
    tokens = np.zeros((rows, length), np.int32)
    image_feature_index = np.full((rows, length), -1, np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = len(prompt.tokens)
        tokens[row, : lengths[row]] = prompt.tokens
        image_feature_index[row, : lengths[row]] = prompt.image_feature_index
    return Prompts(
        tokens, lengths, image_feature_index, _stack_crops([prompt.crops for prompt in prompts], rows, crops)
    )


def crop_bucket(prompts: Sequence[Prompt]) -> int:
    """Crops a row that each of `prompts` fits in."""
    most = max(0 if prompt.crops is None else len(prompt.crops) for prompt in prompts)
    return bucket_size(most, least=1, an_octave=4) if most else 0


def _stack_crops(crops: list, rows: int, number: int) -> np.ndarray | None:
    if number == 0:
        return None
    side = next(one.shape[1:] for one in crops if one is not None)
    stacked = np.zeros((rows, number, *side), np.uint8)
    for row, one in enumerate(crops):
        if one is not None:
            stacked[row, : len(one)] = one
    return stacked


@functools.partial(jax.jit, static_argnames=("module", "slots", "shape"))
def prefill(
    module, params, prompts: Prompts, keys, limits, rules: SamplingParams, *, slots: int, shape: DecodeSpec
) -> State:
    """Reads the prompts, into a cache of `slots` a row, and chooses each row's first token.

    Where `shape.guided`, `prompts` holds 2 B rows: the conditional ones, then the unconditional ones.
    """
    features = None
    if prompts.crops is not None:
        features = module.apply({"params": params}, prompts.crops, method="features")
    rows, length = prompts.tokens.shape
    hidden, cache = module.apply(
        {"params": params},
        prompts.tokens,
        jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length)),
        module.init_cache(rows, slots),
        image_feature_index=prompts.image_feature_index,
        features=features,
        method="extend",
    )
    last = jnp.maximum(prompts.lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    forced, head = _forced(rules, shape), _head(params, rules)
    places = jnp.zeros((len(limits), 1), jnp.int32)
    first = _choose(module, params, head, hidden, keys, places, rules, forced, shape)
    tokens = jnp.where(forced == MODEL_CHOOSES, first, forced[None])
    counts, limits = _accept_tokens(jnp.zeros_like(limits), limits, first, jnp.zeros_like(limits), rules)
    return State(cache, prompts.lengths, keys, tokens, counts, limits)


def _forced(rules: SamplingParams, shape: DecodeSpec) -> jax.Array:
    """int32[M + 2 W]: `rules.forced`, and room for drafts beyond it."""
    return jnp.pad(rules.forced, (0, 2 * shape.window), constant_values=MODEL_CHOOSES)


def _head(params, rules: SamplingParams):
    """The columns of lm_head that can be chosen; None: all."""
    return None if rules.ids is None else params["decoder"]["lm_head"]["kernel"][:, rules.ids]


@functools.partial(jax.jit, donate_argnames="state")
def replace_rows(state: State, other: State, rows) -> State:
    """`state` with the rows of `other` put at `rows` int32[b] (those beyond its end are left out)."""
    both = rows
    if len(state.lengths) != len(state.limits):  # unconditional rows follow the conditional ones
        number = len(state.limits)
        both = jnp.concatenate([rows, jnp.where(rows < number, rows + number, 2 * number)])

    def put(old, new):
        return old.at[rows if len(new) == len(rows) else both].set(new, mode="drop")

    return jax.tree.map(put, state, other)


# A loop returns the cache that it was given: only so can it work in its memory, without a copy.
@functools.partial(jax.jit, static_argnames=("module", "shape"), donate_argnames="state")
def decode_loop(module, params, state: State, rules: SamplingParams, least, most, *, shape: DecodeSpec):
    """Writes while at least `least` rows are unfinished, `most` passes at most: the state, passes taken."""
    forced, head = _forced(rules, shape), _head(params, rules)

    def unfinished(loop):
        state, passes = loop
        return (jnp.sum(state.counts < state.limits) >= least) & (passes < most)

    def along(loop):  # whether a forced id comes next: read with the token before it, it takes no pass
        state, _ = loop
        return jnp.any((state.counts < state.limits) & (forced[state.counts] != MODEL_CHOOSES))

    def passes_of(width: int, when, loop):
        def body(loop):
            state, passes = loop
            return _decode_step(module, params, head, state, rules, forced, shape, width), passes + 1

        return jax.lax.while_loop(lambda loop: unfinished(loop) & when(loop), body, loop)

    loop = (state, jnp.int32(0))
    if shape.window > 1 or head is None:
        return passes_of(shape.window, lambda _: True, loop)

    # Loops within a loop, as a branch inside one would copy the cache that it changes.
    def body(loop):
        loop = passes_of(1, lambda loop: ~along(loop), loop)
        return passes_of(2, along, loop)

    return jax.lax.while_loop(unfinished, body, loop)


def _decode_step(
    module, params, head, state: State, rules: SamplingParams, forced, shape: DecodeSpec, width: int
) -> State:
    """One pass: reads each row's last settled token and `width` - 1 drafts, settles what they confirm."""
    places = state.counts[:, None] - 1 + jnp.arange(width)
    read = jnp.take_along_axis(state.tokens, jnp.maximum(places, 0), axis=1)
    streams = len(state.lengths) // len(state.limits)
    positions = state.lengths[:, None] + jnp.tile(places, (streams, 1))
    hidden, cache = module.apply(
        {"params": params}, jnp.tile(read, (streams, 1)), positions, state.cache, method="extend"
    )
    found = _choose(module, params, head, hidden, state.keys, places + 1, rules, forced, shape)
    agreed = jnp.sum(jnp.cumprod(found[:, :-1] == read[:, 1:], axis=1), axis=1)
    rows = jnp.arange(len(found))[:, None]
    tokens = state.tokens.at[rows, places + 1].set(found, mode="drop")
    if width > 1:
        later = places + 1 + width
        draft = jnp.take_along_axis(tokens, jnp.maximum(later - rules.stride, 0), axis=1)
        draft = jnp.where(later < rules.stride, found[:, -1:], draft)
        tokens = tokens.at[rows, later].set(
            jnp.where(forced[later] == MODEL_CHOOSES, draft, forced[later]), mode="drop"
        )
    counts, limits = _accept_tokens(state.counts, state.limits, found, agreed, rules)
    return state._replace(cache=cache, tokens=tokens, counts=counts, limits=limits)


def _accept_tokens(counts, limits, found, agreed, rules: SamplingParams):
    """(counts, limits) after the first `agreed` + 1 of `found` int32[B, W] were settled, if they matter."""
    if len(rules.ends):
        ending = jnp.isin(found, rules.ends) & (jnp.arange(found.shape[1]) <= agreed[:, None])
        ended = counts + 1 + jnp.argmax(ending, axis=1).astype(jnp.int32)
        limits = jnp.where(jnp.any(ending, axis=1), jnp.minimum(limits, ended), limits)
    return jnp.minimum(counts + 1 + agreed.astype(jnp.int32), limits), limits


def _choose(
    module, params, head, hidden, keys, places, rules: SamplingParams, forced, shape: DecodeSpec
) -> jax.Array:
    """int32[B, W]: the tokens at `places` int32[B, W], of hidden [B or 2 B, W, D], the states before them."""
    B, W = places.shape
    if head is None:
        logits = module.apply({"params": params}, hidden, method="logits")
    else:
        logits = code_logits(hidden, head, module.dtype)
    logits = apply_cfg(logits, rules.guidance) if shape.guided else logits
    if shape.greedy:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        flat = logits.reshape(B * W, -1)
        token = sample(flat, position_keys(keys, places).reshape(-1), rules.top_k, rules.temperature).reshape(
            B, W
        )
    token = token if head is None else rules.ids[token]
    return jnp.where(forced[places] == MODEL_CHOOSES, token, forced[places])


def code_logits(hidden, head, dtype):
    """float32[..., codes] of hidden [..., D] and the head's code columns [D, codes]."""
    return jnp.dot(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)
