"""Prompts -> tokens, two compiled programs a shape bucket: prefill, then a loop that stays on the device.

Prompts are padded at the right to a bucket's length, and each row goes on at its own length: the cache slot
of a token is its position, so what a padded row holds beyond its length is overwritten before it is ever
seen. Whatever a user varies between calls (text, seed, top-k, temperature, guidance, the answer's limit) is
traced, not compiled in.

One loop writes text and images, with speculation or without. A token is a pure function of what stands
before it: the best of logits + noise, where the noise belongs to its position (sampling.py). So one pass can
read a window of W tokens, the last accepted one and W - 1 drafts, and predict the token after each. A
prediction is right if all that was read before it was right. Drafts that the predictions confirm are
accepted, and so is the prediction after them; those behind are the next pass's drafts (Jacobi iteration).
With W = 4, where a and b are accepted, c x e are drafts, and plain decoding would write c d e' f':

    offset after the prompt   0  1  2  3  4  5  6
    tokens                    a  b  c  x  e            counts = 2
    the pass reads               b  c  x  e
    and predicts                    c  d  e' f         c confirms the draft c; d replaces x
    tokens                    a  b  c  d  e' f  g      counts = 4; e' and f, predicted behind the wrong
                                                       x, are drafts now, as is g, a guess

The result is that of plain decoding, W = 1, token by token: the one fixed point, reached in fewer passes.
Because a draft and its check share their noise, they agree more often than independent draws (speculative
Jacobi decoding, arXiv 2410.01699, with the coupling of arXiv 2510.24211). An id that the grammar forces is a
draft that is always right. Letters: B rows, T prompt tokens, C crops, D width, W window, M tokens at most
after the prompt, N ids that can be chosen, E ids that end a row.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.generate.sampling import apply_cfg, position_keys, sample
from unitoken_jax.model.decoder import Cache
from unitoken_jax.model.lora import whole_kernel
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES


class Prompt(NamedTuple):
    """One prompt: tokens int32[T], image_feature_index int32[T], crops uint8[C, S, S, 3] (C may be 0)."""

    tokens: np.ndarray
    image_feature_index: np.ndarray
    crops: np.ndarray | None = None


class Prompts(NamedTuple):
    """Padded prompts. `lengths` is 0 in rows that only fill the bucket; `crops` is None if no row has any, or
    if `features` is what the network made of them already."""

    tokens: Any  # int32[B, T]
    lengths: Any  # int32[B]
    image_feature_index: Any  # int32[B, T]
    crops: Any  # uint8[B, C, S, S, 3] | None
    features: Any = None  # [B, C * P, D] | None


class SamplingParams(NamedTuple):
    """How tokens are chosen. All fields are traced: other values compile nothing.

    `top_k` int32, `temperature` and `guidance` float32 are `sampling.sample`'s and `apply_cfg`'s, `ends`
    int32[E] the ids that end a row: one of each for all rows, or with an axis [B] before, each row's own.
    `forced` int32[M]: the id at each offset after the prompt, MODEL_CHOOSES where it is not forced. `ids`
    int32[N]: those that may be chosen; None: all. `stride` int32: how many tokens before it stands the token
    that a new draft copies (in an image: the code above it).
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
    """What is compiled into the programs. `window`: tokens that a pass reads in each row, 1 is plain
    decoding. `guided`: B conditional rows are followed by B unconditional ones, to which the same tokens are
    appended. `greedy`: the most likely token is chosen, without noise."""

    window: int = 1
    guided: bool = False
    greedy: bool = False


class DecodeState(NamedTuple):
    """Rows being written. Of `tokens` int32[B, M + 2 W] the first `counts` are accepted, the rest are drafts;
    the last accepted one is not in the cache yet. A row ends at its `limits`, at once where that is 0."""

    cache: Cache  # of B rows, 2 B where guided
    lengths: Any  # int32[B or 2 B], of the prompts
    keys: Any  # key[B]
    tokens: Any
    counts: Any  # int32[B]
    limits: Any  # int32[B]


def bucket_size(number: int, minimum: int = 64, steps_per_octave: int = 2) -> int:
    """The least bucket that holds `number`.

    Buckets are `minimum`, then between it and 2 * `minimum` (an octave), and so on, `steps_per_octave`
    equally wide steps: 64, 96, 128, 192, 256, ...
    """
    top = max(minimum, 1)
    while top < number:
        top *= 2
    step = max(top // 2 // steps_per_octave, 1)
    return top if top == minimum else -(-number // step) * step


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
    """How many crops a row has room for, so that each of `prompts` fits."""
    max_crops = max(0 if prompt.crops is None else len(prompt.crops) for prompt in prompts)
    return bucket_size(max_crops, minimum=1, steps_per_octave=4) if max_crops else 0


def _stack_crops(prompt_crops: Sequence[np.ndarray | None], rows: int, number: int) -> np.ndarray | None:
    """uint8[rows, number, S, S, 3] of each prompt's crops uint8[C, S, S, 3], padded with zeros; None
    without."""
    if number == 0:
        return None
    shape = next(crops.shape[1:] for crops in prompt_crops if crops is not None)
    stacked = np.zeros((rows, number, *shape), np.uint8)
    for row, crops in enumerate(prompt_crops):
        if crops is not None:
            stacked[row, : len(crops)] = crops
    return stacked


@functools.partial(jax.jit, static_argnames=("module", "slots", "spec"))
def prefill(
    module, params, prompts: Prompts, keys, limits, sampling: SamplingParams, *, slots: int, spec: DecodeSpec
) -> DecodeState:
    """Reads the prompts, into a cache of `slots` a row, and chooses each row's first token.

    Args:
      module, params: the network, a `UniTokenModel`, and its parameters.
      prompts: of B rows; where `spec.guided` of 2 B: the conditional ones, then the unconditional ones.
      keys: key[B] of the rows' noise (`sampling.stream_keys`).
      limits: int32[B], tokens that each row gets at most; 0 in rows that only fill the bucket.
      sampling, spec: how tokens are chosen.
      slots: tokens that a row of the cache has room for: T and M.
    """
    cache = module.init_cache(len(prompts.tokens), slots)
    return _read_prompts(module, params, cache, prompts, 0, keys, limits, sampling, spec)


@functools.partial(jax.jit, static_argnames=("module", "spec"), donate_argnames="cache")
def prefill_window(
    module, params, cache: Cache, prompts: Prompts, starts, keys, limits, sampling: SamplingParams, *, spec
) -> DecodeState:
    """Reads a window of each prompt, whose tokens before it are in `cache`: a long prompt can be read with
    pauses.

    Args:
      module, params, keys, limits, sampling, spec: as for `prefill`. Unless it is the last window, the token
        that is chosen after it means nothing, and `limits` is 0.
      cache: of the windows before, with room for the whole row; given up.
      prompts: the windows; their `lengths` count the tokens in them.
      starts: int32[B], the tokens of each prompt before its window.
    """
    return _read_prompts(module, params, cache, prompts, starts, keys, limits, sampling, spec)


def _read_prompts(module, params, cache, prompts, starts, keys, limits, sampling, spec) -> DecodeState:
    """`prefill` and `prefill_window`: reads `prompts` behind the first `starts` tokens of `cache`."""
    features = prompts.features
    if prompts.crops is not None:
        features = module.apply({"params": params}, prompts.crops, method="features")
    positions = jnp.broadcast_to(jnp.arange(prompts.tokens.shape[1], dtype=jnp.int32), prompts.tokens.shape)
    lengths = prompts.lengths
    if not isinstance(starts, int):
        positions, lengths = starts[:, None] + positions, starts + lengths
    hidden, cache = module.apply(
        {"params": params},
        prompts.tokens,
        positions,
        cache,
        image_feature_index=prompts.image_feature_index,
        features=features,
        method="extend",
    )
    last = jnp.maximum(prompts.lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    chooser = _Chooser.of(module, params, sampling, spec)
    first = chooser(hidden, keys, jnp.zeros((len(limits), 1), jnp.int32))
    forced = chooser.forced
    tokens = jnp.where(forced == MODEL_CHOOSES, first, forced[None])
    counts, limits = _accept_tokens(jnp.zeros_like(limits), limits, first, jnp.zeros_like(limits), sampling)
    return DecodeState(cache, lengths, keys, tokens, counts, limits)


@functools.partial(jax.jit, donate_argnames="state")
def replace_rows(state: DecodeState, other: DecodeState, rows) -> DecodeState:
    """`state` with the rows of `other` written over `rows` int32[b]; a row beyond its end is left out. The
    cache of `other` may have fewer slots, no less than its prompts have tokens."""
    with_unconditional = rows
    if len(state.lengths) != len(state.limits):  # unconditional rows follow the conditional ones
        number = len(state.limits)
        with_unconditional = jnp.concatenate([rows, jnp.where(rows < number, rows + number, 2 * number)])

    def put(old, new):
        at = rows if len(new) == len(rows) else with_unconditional
        if old.shape[2:3] != new.shape[2:3]:  # a cache of fewer slots
            return old.at[at, :, : new.shape[2]].set(new, mode="drop")
        return old.at[at].set(new, mode="drop")

    return jax.tree.map(put, state, other)


# A loop returns the cache that it was given: only so can it work in its memory, without a copy.
@functools.partial(jax.jit, static_argnames=("module", "spec", "slots"), donate_argnames="state")
def decode_loop(
    module,
    params,
    state: DecodeState,
    sampling: SamplingParams,
    min_unfinished,
    max_passes,
    *,
    spec: DecodeSpec,
    slots: int | None = None,
):
    """(state, int32 passes taken) after writing while at least `min_unfinished` int32 rows are unfinished,
    for at most `max_passes` int32 passes.

    `slots`: of each row, as many as the unfinished ones come to need; the others are then not read. None:
    all.
    """
    if slots is not None:
        used = jax.tree.map(lambda entries: entries[:, :, :slots], state.cache)
        settings = sampling, min_unfinished, max_passes
        result, passes = decode_loop(module, params, state._replace(cache=used), *settings, spec=spec)
        cache = jax.tree.map(lambda old, new: old.at[:, :, :slots].set(new), state.cache, result.cache)
        return result._replace(cache=cache), passes
    chooser = _Chooser.of(module, params, sampling, spec)

    def unfinished(loop):
        state, passes = loop
        return (jnp.sum(state.counts < state.limits) >= min_unfinished) & (passes < max_passes)

    def forced_next(loop):  # a forced id comes next: read with the token before it, it takes no pass
        state, _ = loop
        return jnp.any((state.counts < state.limits) & (chooser.forced[state.counts] != MODEL_CHOOSES))

    def passes_of(width: int, condition, loop):
        def body(loop):
            state, passes = loop
            return _decode_step(chooser, state, width), passes + 1

        return jax.lax.while_loop(lambda loop: unfinished(loop) & condition(loop), body, loop)

    loop = (state, jnp.int32(0))
    if spec.window > 1 or sampling.ids is None:
        return passes_of(spec.window, lambda _: True, loop)

    # Loops within a loop, as a branch inside one would copy the cache that it changes.
    def body(loop):
        loop = passes_of(1, lambda loop: ~forced_next(loop), loop)
        return passes_of(2, forced_next, loop)

    return jax.lax.while_loop(unfinished, body, loop)


def _decode_step(chooser: "_Chooser", state: DecodeState, width: int) -> DecodeState:
    """One pass: reads each row's last accepted token and `width` - 1 drafts, accepts what they confirm (drawn
    in the module's docstring)."""
    sampling, forced = chooser.sampling, chooser.forced
    offsets = state.counts[:, None] - 1 + jnp.arange(width)
    read = jnp.take_along_axis(state.tokens, jnp.maximum(offsets, 0), axis=1)
    streams = len(state.lengths) // len(state.limits)  # 2 where guided
    positions = state.lengths[:, None] + jnp.tile(offsets, (streams, 1))
    hidden, cache = chooser.module.apply(
        {"params": chooser.params}, jnp.tile(read, (streams, 1)), positions, state.cache, method="extend"
    )
    predicted = chooser(hidden, state.keys, offsets + 1)
    confirmed = jnp.sum(jnp.cumprod(predicted[:, :-1] == read[:, 1:], axis=1), axis=1)
    rows = jnp.arange(len(predicted))[:, None]
    tokens = state.tokens.at[rows, offsets + 1].set(predicted, mode="drop")
    if width > 1:
        later = offsets + 1 + width  # not read so far: their first drafts
        draft = jnp.take_along_axis(tokens, jnp.maximum(later - sampling.stride, 0), axis=1)
        draft = jnp.where(later < sampling.stride, predicted[:, -1:], draft)
        tokens = tokens.at[rows, later].set(
            jnp.where(forced[later] == MODEL_CHOOSES, draft, forced[later]), mode="drop"
        )
    counts, limits = _accept_tokens(state.counts, state.limits, predicted, confirmed, sampling)
    return state._replace(cache=cache, tokens=tokens, counts=counts, limits=limits)


def _accept_tokens(counts, limits, predicted, confirmed, sampling: SamplingParams):
    """(counts, limits) int32[B] after the first `confirmed` + 1 of `predicted` int32[B, W] were accepted; an
    accepted one of `sampling.ends` becomes the row's limit."""
    if jnp.shape(sampling.ends)[-1]:
        ends = jnp.broadcast_to(sampling.ends, (len(counts), jnp.shape(sampling.ends)[-1]))
        ending = jnp.any(predicted[:, :, None] == ends[:, None], axis=-1)
        ending &= jnp.arange(predicted.shape[1]) <= confirmed[:, None]
        ended = counts + 1 + jnp.argmax(ending, axis=1).astype(jnp.int32)
        limits = jnp.where(jnp.any(ending, axis=1), jnp.minimum(limits, ended), limits)
    return jnp.minimum(counts + 1 + confirmed.astype(jnp.int32), limits), limits


class _Chooser(NamedTuple):
    """Hidden states -> tokens, as `sampling` and `spec` say.

    `forced` int32[M + 2 W] is `sampling.forced` with room for drafts beyond it; `head` [D, N] the columns of
    lm_head whose ids can be chosen, None: all.
    """

    module: Any
    params: Any
    sampling: SamplingParams
    spec: DecodeSpec
    forced: jax.Array
    head: jax.Array | None

    @classmethod
    def of(cls, module, params, sampling: SamplingParams, spec: DecodeSpec) -> "_Chooser":
        forced = jnp.pad(sampling.forced, (0, 2 * spec.window), constant_values=MODEL_CHOOSES)
        head = None
        if sampling.ids is not None:
            head = whole_kernel(params["decoder"]["lm_head"], sampling.ids)
        return cls(module, params, sampling, spec, forced, head)

    def __call__(self, hidden: jax.Array, keys: jax.Array, offsets: jax.Array) -> jax.Array:
        """int32[B, W]: the tokens at `offsets` int32[B, W] after the prompt; `hidden` [B or 2 B, W, D] are
        the states before them, `keys` key[B] the rows' noise."""
        B, W = offsets.shape
        sampling = self.sampling
        if self.head is None:
            logits = self.module.apply({"params": self.params}, hidden, method="logits")
        else:
            logits = code_logits(hidden, self.head, self.module.dtype)
        logits = apply_cfg(logits, sampling.guidance) if self.spec.guided else logits
        if self.spec.greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            flat, flat_keys = logits.reshape(B * W, -1), position_keys(keys, offsets).reshape(-1)
            top_k, temperature = (_of_tokens(x, W) for x in (sampling.top_k, sampling.temperature))
            token = sample(flat, flat_keys, top_k, temperature).reshape(B, W)
        token = token if self.head is None else sampling.ids[token]
        return jnp.where(self.forced[offsets] == MODEL_CHOOSES, token, self.forced[offsets])


def code_logits(hidden, head, dtype):
    """float32[..., codes] of hidden [..., D] and the head's code columns [D, codes]."""
    return jnp.dot(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)


def _of_tokens(setting, W: int):
    """A setting of all rows as it is; that of each row [B] as that of its W tokens, [B * W]."""
    return setting if jnp.ndim(setting) == 0 else jnp.repeat(setting, W)
