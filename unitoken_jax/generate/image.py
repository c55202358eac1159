"""Prompts -> pictures: tokens drawn under the picture grammar with guidance, then VQ-decoded.

Text-to-image as the published code does it: the unconditional stream starts at begin-of-image, both size
ids are forced, then codes alone are chosen, with new-lines and end forced (reference: README).
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from unitoken_jax.config import ModelConfig
from unitoken_jax.generate import decode
from unitoken_jax.generate.grammar import PictureGrammar, picture_grammar
from unitoken_jax.generate.sampling import check_sampling, stream_keys
from unitoken_jax.host import sequence
from unitoken_jax.model.layers import to_pixels

if TYPE_CHECKING:
    from unitoken_jax.model_dir import UniToken

BATCH = 16  # pictures drawn at one time; with guidance each is two rows


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """A generated picture. `tokens` int32[N]: begin-of-image ... end-of-image. `number`: see `draw`.

    `timing` is that of the batch it was drawn in, up to its tokens.
    """

    prompt: str
    number: int
    tokens: np.ndarray
    picture: Image.Image
    timing: decode.Timing


def draw(
    model: "UniToken",
    prompts: Sequence[str],
    *,
    number: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    size: tuple[int, int] | None = None,
    batch: int = BATCH,
) -> list[Drawing]:
    """`number` pictures of each of `prompts`, in order: all of the first, then all of the second, ...

    `size` = (height, width) px, default: as in training. What is None is the model's default
    (`config.generation`). A sample depends on (seed, prompt, its number among this prompt's samples)
    alone: not on the other prompts, its place among them, or `batch` (up to the last bit of a matrix
    product, which only a near-tie between two codes can make visible).
    Raises ValueError for an unsupported size or meaningless settings.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; expected a list of them: [prompt]")
    for i, text in enumerate(prompts):
        if not text.strip():
            raise ValueError(f"prompt {i} is empty; say what to draw")
    if number < 1:
        raise ValueError(f"number is {number}; expected at least 1 picture a prompt")
    settings, config = model.config.generation, model.config
    top_k, temperature, guidance = check_sampling(
        default_top_k(config) if top_k is None else top_k,
        settings.temperature if temperature is None else temperature,
        settings.guidance if guidance is None else guidance,
        config.vq.codes,
    )
    model.require("vqgan/decoder", "drawing pictures")
    grammar = picture_grammar(config, model.tokenizer.vocabulary, *(size or config.sequence.picture_size))

    read = {text: _prompt(model, text, grammar) for text in dict.fromkeys(prompts)}
    seen = Counter()
    jobs = []
    for text in prompts:
        jobs += [(text, seen[text] + i) for i in range(number)]
        seen[text] += number

    drawings = []
    for start in range(0, len(jobs), batch):
        group = jobs[start : start + batch]
        tokens, timing = _draw_group(model, grammar, group, read, seed, guidance, top_k, temperature)
        pictures = decode_codes(model, grammar.codes(tokens))
        begin = np.full((len(group), 1), grammar.begin, np.int32)
        rows = np.concatenate([begin, tokens], axis=1)
        drawings += [Drawing(*job, row, picture, timing) for job, row, picture in zip(group, rows, pictures)]
    return drawings


def default_top_k(config: ModelConfig) -> int:
    """The model's own top-k; all codes where it has fewer."""
    return min(config.generation.top_k, config.vq.codes)


def _prompt(model: "UniToken", text: str, grammar: PictureGrammar) -> np.ndarray:
    """int32[T]: the prompt's tokens up to and with the forced sizes."""
    tokens = sequence.picture_prompt(text, model.tokenizer, model.config).tokens
    return np.concatenate([tokens, grammar.head]).astype(np.int32)


def _draw_group(model, grammar, group, read, seed, guidance, top_k, temperature):
    """The tokens of each (text, number) of `group` after begin-of-image, int32[len(group), N]; a Timing."""
    guided = guidance != 1.0
    rows = model.rows(len(group))
    unconditional = np.concatenate([sequence.unconditional_prompt(model.tokenizer.vocabulary), grammar.head])
    filler = rows - len(group)
    texts = [read[text] for text, _ in group]
    if guided:
        # Rows come in two halves, so what fills the bucket must sit at the end of each.
        texts += [texts[0]] * filler + [unconditional] * rows
    prompts = decode.stack(
        [decode.Prompt(tokens, np.full(len(tokens), -1, np.int32)) for tokens in texts],
        rows * (2 if guided else 1),
    )
    streams = [(zlib.crc32(read[text].tobytes()), sample) for text, sample in group]
    streams += [(0, 0)] * filler
    keys = stream_keys(np.uint32(seed), np.array(streams, np.uint32))
    sampling = decode.Sampling(keys, np.int32(top_k), np.float32(temperature))
    drawn, timing = model.run(
        decode.draw,
        model.module,
        model.network_params,
        model.place(prompts),
        sampling,
        np.float32(guidance),
        grammar.row_end,
        grammar.code_ids,
        size=(grammar.rows, grammar.columns),
        guided=guided,
    )
    return grammar.tokens(model.fetch(drawn)[: len(group)]), timing


def decode_codes(model: "UniToken", codes: np.ndarray, batch: int = BATCH) -> list[Image.Image]:
    """Pictures of VQ codes int32[M, h, w], `batch` at one time."""
    model.require("vqgan/decoder", "decoding pictures")
    pictures = []
    for start in range(0, len(codes), batch):
        group = codes[start : start + batch]
        padded = np.zeros((model.rows(len(group)), *group.shape[1:]), np.int32)
        padded[: len(group)] = group
        pixels = model.fetch(model.run(_pixels, model.vq, model.params["vqgan"], model.place(padded)))
        pictures += [Image.fromarray(one) for one in pixels[: len(group)]]
    return pictures


@functools.partial(jax.jit, static_argnames=("vq",))
def _pixels(vq, params, codes):
    """uint8[B, H, W, 3] of codes int32[B, h, w]."""
    return to_pixels(vq.apply({"params": params}, codes, method="decode"))


def encode_pictures(model: "UniToken", crops: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """VQ codes int32[M, h, w] of discrete crops uint8[M, H, W, 3]."""
    model.require("vqgan/encoder", "reading discrete picture tokens")
    found = []
    for start in range(0, len(crops), batch):
        group = crops[start : start + batch]
        padded = np.zeros((model.rows(len(group)), *group.shape[1:]), np.uint8)
        padded[: len(group)] = group
        codes = model.run(_codes, model.vq, model.params["vqgan"], model.place(padded))
        found.append(model.fetch(codes)[: len(group)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames=("vq",))
def _codes(vq, params, crops):
    latents = vq.apply({"params": params}, crops, method="encode")
    return vq.apply({"params": params}, latents, method="quantize")[1]
