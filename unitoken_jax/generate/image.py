"""Prompts -> images: tokens drawn under the image grammar with guidance, then VQ-decoded.

Text-to-image as the published code does it: the unconditional stream starts at begin-of-image, both size
ids are forced, then codes alone are chosen, with new-lines and end forced (reference: README).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from unitoken_jax.batch import NO_INDEX
from unitoken_jax.config import ModelConfig
from unitoken_jax.generate import decode, scheduler
from unitoken_jax.generate.grammar import SAMPLE, ImageGrammar, image_grammar
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import check_sampling
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.generate.vq import decode_codes
from unitoken_jax.sequence import build

WINDOW = 16  # tokens a pass reads on an accelerator; the weights take longer to read than they to compute


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
    """A generated image. `tokens` int32[N]: begin-of-image ... end-of-image. `number`: see `draw`.

    `timing` is that of the batch it was drawn in, up to its tokens.
    """

    prompt: str
    number: int
    tokens: np.ndarray
    image: Image.Image
    timing: decode.Timing


class ImageSettings(NamedTuple):
    """How codes are chosen, checked; see `settings`."""

    guidance: float
    top_k: int
    temperature: float
    window: int


def draw(
    model: Runtime,
    prompts: Sequence[str],
    *,
    number: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    size: tuple[int, int] | None = None,
    batch: int = BATCH,
    speculate: int | None = None,
    progress: Callable[[int, Image.Image], None] | None = None,
) -> list[ImageResult]:
    """`number` images of each of `prompts`, in order: all of the first, then all of the second, ...

    `size` = (height, width) px, default: as in training. What is None is the model's default
    (`config.generation`). A sample depends on (seed, prompt, its number among this prompt's samples)
    alone: not on the other prompts, its place among them, `batch`, or `speculate`, how many tokens a pass
    reads (up to the last bit of a matrix product, which only a near-tie between two codes can make visible).
    `progress` is called with an image's number and its rows so far, about once a row.
    Raises ValueError for an unsupported size or meaningless settings.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; expected a list of them: [prompt]")
    for i, text in enumerate(prompts):
        if not text.strip():
            raise ValueError(f"prompt {i} is empty; say what to draw")
    if number < 1:
        raise ValueError(f"number is {number}; expected at least 1 image a prompt")
    found = resolve_settings(model.config, guidance, top_k, temperature, speculate)
    model.require("vqgan/decoder", "drawing images")
    grammar = grammar_of(model, size)

    read = {text: _prompt(model, text) for text in dict.fromkeys(prompts)}
    numbers: Counter[str] = Counter()
    jobs: list[tuple[str, int]] = []
    for text in prompts:
        jobs += [(text, numbers[text] + i) for i in range(number)]
        numbers[text] += number
    clock = decode.Clock()
    told: Counter[int] = Counter()  # rows of each image that `progress` has seen
    ids = np.zeros((len(jobs), grammar.rows * grammar.columns), np.int32)
    for one in draw_codes(
        model,
        [(read[text], i) for text, i in jobs],
        grammar,
        clock,
        found,
        seed=seed,
        batch=batch,
        every=grammar.columns if progress else None,
    ):
        rows = len(one.tokens) // grammar.columns
        if one.done:
            ids[one.job] = one.tokens
        if progress and rows > told[one.job]:
            progress(one.job, _rows_so_far(model, grammar, one.tokens, rows))
            told[one.job] = rows
    tokens = grammar.tokens(ids)
    images = decode_codes(model, grammar.codes(tokens), batch)
    tokens = np.concatenate([np.full((len(jobs), 1), grammar.begin, np.int32), tokens], axis=1)
    return [ImageResult(*job, row, image, clock.timing) for job, row, image in zip(jobs, tokens, images)]


def resolve_settings(
    config: ModelConfig, guidance=None, top_k=None, temperature=None, speculate=None
) -> ImageSettings:
    """The given settings, the model's where they are None. Raises ValueError for what means nothing."""
    own = config.generation
    top_k, temperature, guidance = check_sampling(
        default_top_k(config) if top_k is None else top_k,
        own.temperature if temperature is None else temperature,
        own.guidance if guidance is None else guidance,
        config.vq.codes,
    )
    window = own.speculate if speculate is None else speculate
    if window is None:
        window = 0 if jax.default_backend() == "cpu" else WINDOW
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(
            f"speculate is {window!r}; expected how many tokens a pass reads, 0 for plain decoding"
        )
    return ImageSettings(guidance, top_k, temperature, max(window, 1))


def grammar_of(model: Runtime, size: tuple[int, int] | None) -> ImageGrammar:
    """The grammar of an image of `size` = (height, width) px, None: as in training."""
    height, width = size or model.config.sequence.image_size
    return image_grammar(model.config, model.tokenizer.vocabulary, height, width)


def draw_codes(
    model: Runtime,
    prompts: Sequence[tuple[decode.Prompt, int]],
    grammar: ImageGrammar,
    clock: decode.Clock,
    settings: ImageSettings,
    *,
    seed: int,
    batch: int,
    every: int | None = None,
) -> Iterator[scheduler.Completion]:
    """Draws an image's codes, as token ids, for each (prompt that ends with begin-of-image, its number).

    They come as each is done; `every`: also what there is of the others, after so many passes.
    """
    drawn = grammar.forced[len(grammar.head) : -1]
    rules = decode.SamplingParams(
        top_k=np.int32(settings.top_k),
        temperature=np.float32(settings.temperature),
        guidance=np.float32(settings.guidance),
        forced=drawn,
        ids=grammar.code_ids,
        ends=np.zeros(0, np.int32),
        stride=np.int32(len(drawn) // grammar.rows),
    )
    limit = len(drawn) - len(grammar.row_end)  # what follows the last code is known
    jobs = []
    for prompt, number in prompts:
        prompt = append_tokens(prompt, grammar.head)
        jobs.append(scheduler.Request(prompt, (scheduler.checksum(prompt), number), limit))
    unconditional = text_prompt(build.unconditional_prompt_ids(model.tokenizer.vocabulary))
    for job, tokens, done in scheduler.complete(
        model,
        jobs,
        rules,
        decode.DecodeSpec(min(settings.window, len(drawn)), guided=settings.guidance != 1.0),
        clock,
        seed=seed,
        batch=batch,
        every=every,
        unconditional=append_tokens(unconditional, grammar.head),
    ):
        yield scheduler.Completion(job, tokens[drawn[: len(tokens)] == SAMPLE], done)


def text_prompt(tokens: np.ndarray) -> decode.Prompt:
    """A prompt without images."""
    return decode.Prompt(np.asarray(tokens, np.int32), np.full(len(tokens), NO_INDEX, np.int32))


def append_tokens(prompt: decode.Prompt, ids: np.ndarray) -> decode.Prompt:
    """`prompt`, then `ids`."""
    more = text_prompt(ids)
    tokens = np.concatenate([prompt.tokens, more.tokens])
    index = np.concatenate([prompt.image_feature_index, more.image_feature_index])
    return decode.Prompt(tokens, index, prompt.crops)


def _rows_so_far(model, grammar: ImageGrammar, ids: np.ndarray, rows: int) -> Image.Image:
    """The upper `rows` rows of codes of an image, as pixels; whole images are decoded, of one shape."""
    ids = np.pad(ids, (0, grammar.rows * grammar.columns - len(ids)), mode="edge")
    (image,) = decode_codes(model, grammar.codes(grammar.tokens(ids[None])))
    return image.crop((0, 0, image.width, image.height * rows // grammar.rows))


def default_top_k(config: ModelConfig) -> int:
    """The model's own top-k; all codes where it has fewer."""
    return min(config.generation.top_k, config.vq.codes)


def _prompt(model: Runtime, text: str) -> decode.Prompt:
    return text_prompt(build.build_text_to_image_prompt(text, model.tokenizer, model.config).tokens)
