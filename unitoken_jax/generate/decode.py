"""Prompts -> tokens, one compiled program a shape bucket: prefill, then a loop that stays on the device.

Prompts are right-padded to a bucket's length and each row goes on at its own length: the cache slot of a
token is its position, so what a padded row holds beyond its length is overwritten before it is ever seen.
Whatever a user varies between calls (text, seed, top-k, temperature, guidance, the answer's limit) is
traced, not compiled in. Letters: B rows, T prompt tokens, C crops, D width.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.generate.sampling import guide, sample, step_keys
from unitoken_jax.model.decoder import init_cache

NOTHING = -1  # what a row holds after its end


class Prompt(NamedTuple):
    """One prompt: tokens int32[T], soft_index int32[T], crops uint8[C, S, S, 3] (C may be 0)."""

    tokens: np.ndarray
    soft_index: np.ndarray
    crops: np.ndarray | None = None


class Prompts(NamedTuple):
    """Padded prompts. `lengths` is 0 in rows that only fill the bucket; `crops` is None if no row has any."""

    tokens: Any  # int32[B, T]
    lengths: Any  # int32[B]
    soft_index: Any  # int32[B, T]
    crops: Any  # uint8[B, C, S, S, 3] | None


class Sampling(NamedTuple):
    """What `sampling.sample` takes, traced. `keys` key[B]: one a row."""

    keys: jax.Array
    top_k: Any
    temperature: Any


def bucket(number: int, least: int = 64, an_octave: int = 2) -> int:
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


def stack(prompts: Sequence[Prompt], rows: int) -> Prompts:
    """Pads `prompts` to `rows` rows and to the buckets of length and crops."""
    length = bucket(max(len(prompt.tokens) for prompt in prompts))
    tokens = np.zeros((rows, length), np.int32)
    soft_index = np.full((rows, length), -1, np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = len(prompt.tokens)
        tokens[row, : lengths[row]] = prompt.tokens
        soft_index[row, : lengths[row]] = prompt.soft_index
    return Prompts(tokens, lengths, soft_index, _stack_crops([prompt.crops for prompt in prompts], rows))


def _stack_crops(crops: list, rows: int) -> np.ndarray | None:
    most = max(0 if one is None else len(one) for one in crops)
    if most == 0:
        return None
    side = next(one.shape[1:] for one in crops if one is not None and len(one))
    stacked = np.zeros((rows, bucket(most, least=1, an_octave=4), *side), np.uint8)
    for row, one in enumerate(crops):
        if one is not None:
            stacked[row, : len(one)] = one
    return stacked


def prefill(module, params, prompts: Prompts, room: int):
    """Reads the prompts: the last token's hidden state [B, 1, D], and a cache with `room` free slots."""
    features = None
    if prompts.crops is not None:
        features = module.apply({"params": params}, prompts.crops, method="features")
    rows, length = prompts.tokens.shape
    cache = init_cache(module.config.decoder, rows, length + room, module.dtype)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    hidden, cache = module.apply(
        {"params": params},
        prompts.tokens,
        positions,
        cache,
        soft_index=prompts.soft_index,
        features=features,
        method="extend",
    )
    last = jnp.maximum(prompts.lengths - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1), cache


def _extend(module, params, tokens, positions, cache):
    """Reads one token a row: tokens int32[B], positions int32[B]."""
    return module.apply({"params": params}, tokens[:, None], positions[:, None], cache, method="extend")


@functools.partial(jax.jit, static_argnames=("module", "room", "greedy"))
def write(module, params, prompts: Prompts, sampling: Sampling, end, limit, *, room: int, greedy: bool):
    """Continues every row up to its `end` token, `limit` tokens at most: int32[B, room], then NOTHING.

    `limit` is traced and at most `room`. `greedy` takes the best token and ignores `sampling`.
    """
    hidden, cache = prefill(module, params, prompts, room)
    rows = prompts.tokens.shape[0]

    def unfinished(state):
        step, _, _, _, ended = state
        return (step < limit) & ~jnp.all(ended)

    def one(state):
        step, hidden, cache, written, ended = state
        logits = module.apply({"params": params}, hidden, method="logits")[:, 0]
        if greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            token = sample(logits, step_keys(sampling.keys, step), sampling.top_k, sampling.temperature)
        written = written.at[:, step].set(jnp.where(ended, NOTHING, token))
        ended = ended | (token == end)
        hidden, cache = _extend(module, params, token, prompts.lengths + step, cache)
        return step + 1, hidden, cache, written, ended

    written = jnp.full((rows, room), NOTHING, jnp.int32)
    start = (jnp.int32(0), hidden, cache, written, prompts.lengths == 0)
    return jax.lax.while_loop(unfinished, one, start)[3]


@functools.partial(jax.jit, static_argnames=("module", "size", "guided"))
def draw(module, params, prompts: Prompts, sampling: Sampling, guidance, row_end, code_ids, *, size, guided):
    """Draws pictures' codes: token ids int32[B, R * C], for `size` = (R, C) rows and columns of codes.

    `row_end` int32[E] are the ids forced after each row of codes; the pass that reads a row's last code
    reads them too, so that there are as many passes as codes. Where `guided`, `prompts` holds 2B rows: the
    conditional ones, then the unconditional ones; both read what the guided conditional row chose. The
    prompts end with whatever is forced before the first code.
    """
    rows, columns = size
    length = columns + len(row_end)  # of a row
    hidden, cache = prefill(module, params, prompts, rows * length)
    head = params["decoder"]["lm_head"]["kernel"][:, code_ids]  # nothing but codes can be drawn

    def one(state, step, forced):
        """Draws the `step`-th token after the prompt, a code, and reads it and what is `forced` after it."""
        hidden, cache = state
        logits = code_logits(hidden[:, 0], head, module.dtype)
        logits = guide(logits, guidance) if guided else logits
        keys = step_keys(sampling.keys, step)
        token = code_ids[sample(logits, keys, sampling.top_k, sampling.temperature)]
        both = jnp.concatenate([token, token]) if guided else token
        read = jnp.concatenate([both[:, None], jnp.tile(forced, (len(both), 1))], axis=1)
        positions = prompts.lengths[:, None] + step + jnp.arange(read.shape[1])
        hidden, cache = module.apply({"params": params}, read, positions, cache, method="extend")
        return (hidden[:, -1:], cache), token

    def row(state, first):
        steps = first + jnp.arange(columns, dtype=jnp.int32)
        state, codes = jax.lax.scan(lambda state, step: one(state, step, row_end[:0]), state, steps[:-1])
        state, last = one(state, steps[-1], row_end)
        return state, jnp.concatenate([codes, last[None]])

    firsts = jnp.arange(rows, dtype=jnp.int32) * length
    codes = jax.lax.scan(row, (hidden, cache), firsts)[1]
    return codes.reshape(rows * columns, -1).T


def code_logits(hidden, head, dtype):
    """float32[B, codes] of hidden [B, D] and the head's code columns [D, codes]."""
    return jnp.dot(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)
