"""Prompts -> tokens, two compiled programs a shape bucket: prefill, then a loop that stays on the device.

Prompts are right-padded to a bucket's length and each row goes on at its own length: the cache slot of a
token is its position, so what a padded row holds beyond its length is overwritten before it is ever seen.
Whatever a user varies between calls (text, seed, top-k, temperature, guidance, the answer's limit) is
traced, not compiled in. Letters: B rows, T prompt tokens, C crops, D width.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unitoken_jax.generate.sampling import guide, sample, step_keys
from unitoken_jax.model.decoder import unstacked

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


class Timing(NamedTuple):
    """Where a batch's seconds went; its rows took them together.

    `compiling`: tracing, and compiling what the caches did not hold. `first`: reading the prompts, which the
    first token waits for. `rest`: `steps` passes, of a token a row each (forced ids ride along).
    """

    compiling: float
    first: float
    rest: float
    steps: int

    def __str__(self) -> str:
        each = 1e3 * self.rest / max(self.steps, 1)
        return (
            f"first token after {self.first:.3f} s, then {each:.2f} ms a token ({self.steps} steps, "
            f"{self.rest:.2f} s); compiling took {self.compiling:.2f} s"
        )


class _Clock:
    """Runs compiled programs and notes how long they took to be ready and to run."""

    def __init__(self):
        self.compiling, self.ran = 0.0, []

    def run(self, program, *arguments, **settings):
        start = time.perf_counter()
        out = program(*arguments, **settings)  # comes back once the program is compiled and under way
        began = time.perf_counter()
        jax.block_until_ready(out)
        self.compiling += began - start
        self.ran.append(time.perf_counter() - began)
        return out

    def timing(self, steps: int) -> Timing:
        return Timing(self.compiling, *self.ran, int(steps))


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


@functools.partial(jax.jit, static_argnames=("module", "room"))
def prefill(module, params, prompts: Prompts, *, room: int):
    """Reads the prompts: the last token's hidden state [B, 1, D], and a cache with `room` free slots."""
    features = None
    if prompts.crops is not None:
        features = module.apply({"params": params}, prompts.crops, method="features")
    rows, length = prompts.tokens.shape
    cache = module.init_cache(rows, length + room)
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


def write(module, params, prompts: Prompts, sampling: Sampling, end, limit, *, room: int, greedy: bool):
    """Continues every row up to its `end` token, `limit` tokens at most: int32[B, room], then NOTHING.

    `limit` is traced and at most `room`. `greedy` takes the best token and ignores `sampling`.
    Returns the tokens and a Timing.
    """
    clock = _Clock()
    hidden, cache = clock.run(prefill, module, params, prompts, room=room)
    arguments = module, params, hidden, cache, prompts.lengths, sampling, end, limit
    written, steps, _ = clock.run(_write, *arguments, room=room, greedy=greedy)
    return written, clock.timing(steps)


def _ready(params):
    """Parameters as a loop best reads them.

    On a CPU, layer by layer: there XLA copies each layer's weights out of their stack in every pass, which
    takes several times as long as the pass, so they are copied once, before the loop. Elsewhere products
    read them in place.
    """
    if jax.default_backend() != "cpu":
        return params
    return {**params, "decoder": unstacked(params["decoder"])}


# Loops return the cache that they were given: only so can they work in its memory, without a copy.
@functools.partial(jax.jit, static_argnames=("module", "room", "greedy"), donate_argnames="cache")
def _write(module, params, hidden, cache, lengths, sampling: Sampling, end, limit, *, room, greedy):
    params = _ready(params)

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
        positions = (lengths + step)[:, None]
        hidden, cache = module.apply({"params": params}, token[:, None], positions, cache, method="extend")
        return step + 1, hidden, cache, written, ended

    written = jnp.full((len(lengths), room), NOTHING, jnp.int32)
    start = (jnp.int32(0), hidden, cache, written, lengths == 0)
    steps, _, cache, written, _ = jax.lax.while_loop(unfinished, one, start)
    return written, steps, cache


def draw(module, params, prompts: Prompts, sampling: Sampling, guidance, row_end, code_ids, *, size, guided):
    """Draws pictures' codes: token ids int32[B, R * C], for `size` = (R, C) rows and columns of codes.

    `row_end` int32[E] are the ids forced after each row of codes; the pass that reads a row's last code
    reads them too, so that there are as many passes as codes. Where `guided`, `prompts` holds 2B rows: the
    conditional ones, then the unconditional ones; both read what the guided conditional row chose. The
    prompts end with whatever is forced before the first code. Returns the ids and a Timing.
    """
    clock = _Clock()
    room = size[0] * (size[1] + len(row_end))
    hidden, cache = clock.run(prefill, module, params, prompts, room=room)
    arguments = module, params, hidden, cache, prompts.lengths, sampling, guidance, row_end, code_ids
    codes, _ = clock.run(_draw, *arguments, size=size, guided=guided)
    return codes, clock.timing(size[0] * size[1])


@functools.partial(jax.jit, static_argnames=("module", "size", "guided"), donate_argnames="cache")
def _draw(module, params, hidden, cache, lengths, sampling, guidance, row_end, code_ids, *, size, guided):
    rows, columns = size
    params = _ready(params)
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
        positions = lengths[:, None] + step + jnp.arange(read.shape[1])
        hidden, cache = module.apply({"params": params}, read, positions, cache, method="extend")
        return (hidden[:, -1:], cache), token

    def row(state, first):
        steps = first + jnp.arange(columns, dtype=jnp.int32)
        state, codes = jax.lax.scan(lambda state, step: one(state, step, row_end[:0]), state, steps[:-1])
        state, last = one(state, steps[-1], row_end)
        return state, jnp.concatenate([codes, last[None]])

    firsts = jnp.arange(rows, dtype=jnp.int32) * (columns + len(row_end))
    (_, cache), codes = jax.lax.scan(row, (hidden, cache), firsts)
    return codes.reshape(rows * columns, -1).T, cache


def code_logits(hidden, head, dtype):
    """float32[B, codes] of hidden [B, D] and the head's code columns [D, codes]."""
    return jnp.dot(hidden.astype(dtype), head.astype(dtype), preferred_element_type=jnp.float32)
