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
from unitoken_jax.generate.grammar import ImageGrammar, image_grammar
from unitoken_jax.generate.row_pool import DecodePlan, Request, TokenSampling
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.sampling import check_sampling
from unitoken_jax.generate.scheduler import BATCH
from unitoken_jax.generate.timing import Timing
from unitoken_jax.generate.vq import decode_codes
from unitoken_jax.sequence import build
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

# Tokens that a pass reads on an accelerator, where reading the weights takes longer than computing with them.
WINDOW = 16


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
    """A generated image. `tokens` int32[N]: begin-of-image ... end-of-image. `number`: which of its prompt's
    samples it is. `timing` is that of the batch it was drawn in, up to its tokens."""

    prompt: str
    number: int
    tokens: np.ndarray
    image: Image.Image
    timing: Timing


class ImageSampling(NamedTuple):
    """How an image's codes are chosen, checked (`resolve_image_sampling`); a pass reads `window` tokens."""

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

    A sample depends on (seed, prompt, its number among this prompt's samples) alone: not on the other
    prompts, its position among them, `batch` or `speculate` (up to the last bit of a matrix product, which
    only a near-tie between two codes can make visible).

    Args:
      guidance, top_k, temperature: None is the model's default (`config.generation`).
      size: (height, width) px; None: as in training.
      batch: images drawn at one time.
      speculate: how many tokens a pass reads; 0 is plain decoding, None the model's default.
      progress: called with an image's number and its rows so far, about once a row.
    Raises ValueError for an unsupported size, meaningless settings, or a prompt that no model can be given.
    """
    samples, numbered_prompts, grammar, sampling = plan_drawing(
        model,
        prompts,
        number=number,
        guidance=guidance,
        top_k=top_k,
        temperature=temperature,
        size=size,
        speculate=speculate,
    )
    session = scheduler.DecodeSession(model, seed, batch)
    shown: Counter[int] = Counter()  # rows of each image that `progress` has been given
    ids = np.zeros((len(samples), grammar.rows * grammar.columns), np.int32)
    yield_every = grammar.columns if progress else None
    for request, tokens, done in draw_codes(session, numbered_prompts, grammar, sampling, yield_every):
        if done:
            ids[request] = tokens
        rows = len(tokens) // grammar.columns
        if progress and rows > shown[request]:
            progress(request, rows_so_far(model, grammar, tokens, rows))
            shown[request] = rows
    tokens = grammar.tokens(ids)
    images = decode_codes(model, grammar.codes(tokens), batch)
    tokens = np.concatenate([np.full((len(samples), 1), grammar.begin, np.int32), tokens], axis=1)
    timing = session.clock.timing
    return [ImageResult(*sample, row, image, timing) for sample, row, image in zip(samples, tokens, images)]


class DrawingPlan(NamedTuple):
    """What `draw` is to do. `samples`: (prompt, its number) of each image; `prompts`: the same as the model
    reads them."""

    samples: list[tuple[str, int]]
    prompts: list[tuple[decode.Prompt, int]]
    grammar: ImageGrammar
    sampling: ImageSampling


def plan_drawing(
    model: Runtime,
    prompts: Sequence[str],
    *,
    number: int = 1,
    size: tuple[int, int] | None = None,
    **sampling,
) -> DrawingPlan:
    """Checks what `draw` is given, and raises as it does; `Runtime.outline` is model enough.

    Args:
      model: whose settings and tokenizer count.
      prompts, number, size: as for `draw`.
      **sampling: guidance, top_k, temperature and speculate, as for `draw`.
    """
    check_prompts(prompts)
    if number < 1:
        raise ValueError(f"number is {number}; expected at least 1 image a prompt")
    resolved = resolve_image_sampling(model.config, **sampling)
    model.require("vqgan/decoder", "drawing images")
    grammar = grammar_of(model, size)
    samples = _numbered(prompts, number)
    by_text = {text: drawing_prompt(model, text, prompts.index(text)) for text in dict.fromkeys(prompts)}
    return DrawingPlan(samples, [(by_text[text], i) for text, i in samples], grammar, resolved)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError for one string in place of a list, and for an empty prompt."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; expected a list of them: [prompt]")
    for i, text in enumerate(prompts):
        if not text.strip():
            raise ValueError(f"prompt {i} is empty; say what to draw")


def _numbered(prompts: Sequence[str], number: int) -> list[tuple[str, int]]:
    """(prompt, its number among this prompt's samples) of `number` samples of each of `prompts`, in order."""
    drawn: Counter[str] = Counter()
    samples: list[tuple[str, int]] = []
    for text in prompts:
        samples += [(text, drawn[text] + i) for i in range(number)]
        drawn[text] += number
    return samples


def resolve_image_sampling(
    config: ModelConfig, guidance=None, top_k=None, temperature=None, speculate=None
) -> ImageSampling:
    """The given settings, the model's where they are None. Raises ValueError for what means nothing."""
    defaults = config.generation
    top_k, temperature, guidance = check_sampling(
        default_top_k(config) if top_k is None else top_k,
        defaults.temperature if temperature is None else temperature,
        defaults.guidance if guidance is None else guidance,
        config.vq.codes,
    )
    window = defaults.speculate if speculate is None else speculate
    if window is None:
        window = 0 if jax.default_backend() == "cpu" else WINDOW
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(
            f"speculate is {window!r}; expected how many tokens a pass reads, 0 for plain decoding"
        )
    return ImageSampling(guidance, top_k, temperature, max(window, 1))


def grammar_of(model: Runtime, size: tuple[int, int] | None) -> ImageGrammar:
    """The grammar of an image of `size` = (height, width) px, None: as in training."""
    height, width = size or model.config.sequence.image_size
    return image_grammar(model.config, model.tokenizer.vocabulary, height, width)


def draw_codes(
    session: scheduler.DecodeSession,
    prompts: Sequence[tuple[decode.Prompt, int]],
    grammar: ImageGrammar,
    sampling: ImageSampling,
    yield_every: int | None = None,
) -> Iterator[scheduler.Completion]:
    """Draws an image's codes, as token ids, for each (prompt that ends with begin-of-image, its number).

    They come as each is done; `yield_every`: also what there is of the others, after so many passes.
    """
    plan = image_plan(session.model, grammar, sampling.window, guided=sampling.guidance != 1.0)
    requests = [image_request(prompt, number, grammar, sampling, session.seed) for prompt, number in prompts]
    for request, tokens, done in scheduler.complete(session, requests, plan, yield_every):
        yield scheduler.Completion(request, chosen_codes(plan, tokens), done)


def image_plan(model: Runtime, grammar: ImageGrammar, window: int, guided: bool) -> DecodePlan:
    """How images of `grammar` are drawn together; a pass reads `window` tokens of each."""
    forced = grammar.forced[len(grammar.head) : -1]
    unconditional = text_prompt(build.unconditional_prompt_ids(model.tokenizer.vocabulary))
    return DecodePlan(
        forced,
        ids=grammar.code_ids,
        stride=len(forced) // grammar.rows,
        spec=decode.DecodeSpec(min(window, len(forced)), guided),
        unconditional=append_tokens(unconditional, grammar.head),
    )


def image_request(
    prompt: decode.Prompt, number: int, grammar: ImageGrammar, sampling: ImageSampling, seed: int
) -> Request:
    """Sample `number` of an image after `prompt`, which ends with begin-of-image."""
    prompt = append_tokens(prompt, grammar.head)
    limit = len(grammar.forced) - len(grammar.head) - 1 - len(grammar.row_end)  # what follows is known
    chosen = TokenSampling(seed, sampling.top_k, sampling.temperature, sampling.guidance)
    return Request(prompt, (scheduler.checksum(prompt), number), limit, chosen)


def chosen_codes(plan: DecodePlan, tokens: np.ndarray) -> np.ndarray:
    """Of `tokens` int32[n], the first ones of an image that `plan` draws, those that are codes' ids."""
    return tokens[plan.forced[: len(tokens)] == MODEL_CHOOSES]


def text_prompt(tokens: np.ndarray) -> decode.Prompt:
    """A prompt without images."""
    return decode.Prompt(np.asarray(tokens, np.int32), np.full(len(tokens), NO_INDEX, np.int32))


def append_tokens(prompt: decode.Prompt, ids: np.ndarray) -> decode.Prompt:
    """`prompt`, then `ids`."""
    more = text_prompt(ids)
    tokens = np.concatenate([prompt.tokens, more.tokens])
    index = np.concatenate([prompt.image_feature_index, more.image_feature_index])
    return decode.Prompt(tokens, index, prompt.crops)


def rows_so_far(model, grammar: ImageGrammar, ids: np.ndarray, rows: int) -> Image.Image:
    """The upper `rows` rows of codes of an image, as pixels; whole images are decoded, of one shape."""
    ids = np.pad(ids, (0, grammar.rows * grammar.columns - len(ids)), mode="edge")
    (image,) = decode_codes(model, grammar.codes(grammar.tokens(ids[None])))
    return image.crop((0, 0, image.width, image.height * rows // grammar.rows))


def default_top_k(config: ModelConfig) -> int:
    """The model's own top-k; all codes where it has fewer."""
    return min(config.generation.top_k, config.vq.codes)


def drawing_prompt(model: Runtime, text: str, number: int = 0) -> decode.Prompt:
    """Prompt `number` of a call, as the model reads it, up to begin-of-image."""
    source = f"prompt {number}"
    return text_prompt(build.build_text_to_image_prompt(text, model.tokenizer, model.config, source).tokens)
