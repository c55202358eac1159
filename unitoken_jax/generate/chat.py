"""Conversations -> answers of text and images in turn.

Text is written up to its end or to begin-of-image; then an image is drawn under its grammar, read back as
training shows an image in an answer, and text goes on. Each piece is one call of the loop that answers or
draws, with all before it as its prompt.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from unitoken_jax.generate import decode, image, scheduler, text
from unitoken_jax.generate.grammar import ImageGrammar
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.vq import decode_codes
from unitoken_jax.sequence.conversation import Conversation, GeneratedImage
from unitoken_jax.sequence.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """An answer. `parts`: text and drawn images, in order; as they are, they can be the conversation's next
    turn. `tokens` int32[n]: all of it as the model wrote and read it, without the end of turn."""

    parts: tuple[str | GeneratedImage, ...]
    tokens: np.ndarray
    complete: bool  # the model ended its turn; False: a limit did
    timing: decode.Timing

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Image.Image]:
        return [part.image for part in self.parts if isinstance(part, GeneratedImage)]


def chat(
    model: Runtime,
    conversations: Sequence[Conversation | Sequence],
    *,
    draws: bool = False,
    max_tokens: int | None = None,
    max_images: int = 4,
    temperature: float = 0.0,
    top_k: int | None = None,
    drawing: Mapping | None = None,
    seed: int = 0,
    batch: int = scheduler.BATCH,
) -> list[Reply]:
    """The next turn of each conversation (as for `text.answer`), with images where the model begins one.

    Args:
      draws: the answer begins with an image, whatever the model thinks: "make it blue", after an image.
      max_tokens: of text, in an answer; `max_images`: images in it. A turn ends there at the latest.
      temperature, top_k: of the text, as for `text.answer`.
      drawing: settings of the images: guidance, top_k, temperature, speculate, size, as for `image.draw`.
    Raises ValueError as `text.answer` and `image.draw`.
    """
    if isinstance(conversations, str):
        raise ValueError("conversations is one string; expected a list: [[question]] or [[image, question]]")
    if max_images < int(draws):
        raise ValueError(f"max_images is {max_images}; expected {int(draws)} or more")
    if draws:
        model.require("vqgan/decoder", "drawing images")
    limit = text.token_limit(model, max_tokens)
    chosen = text.resolve_text_sampling(model, temperature, top_k)
    artist = _ImageGenerator(model, seed, batch, **(drawing or {}))
    asked = [text.as_asked(parts, number) for number, parts in enumerate(conversations)]
    lead = model.tokenizer.encode(model.config.sequence.text_before_image) if draws else []
    answers = [_Answer(limit, max_images, lead, "image" if draws else "text") for _ in asked]
    clock, begin = decode.Clock(), model.tokenizer.vocabulary.begin_of_image
    known: dict[bytes, np.ndarray] = {}  # codes of the questions' images, encoded in the first round

    def begun(mode: str) -> tuple[list[_Answer], list[decode.Prompt]]:
        """The answers that go on with `mode`, and what the model reads to do so."""
        numbers = [i for i, one in enumerate(answers) if one.mode == mode]
        parts = [answers[i].parts for i in numbers]
        prompts = text.build_prompts(model, [asked[i] for i in numbers], batch, parts, known)
        return [answers[i] for i in numbers], prompts

    while any(one.mode != "over" for one in answers):
        writing, prompts = begun("text")
        limits = [answer.tokens_left for answer in writing]
        for job, tokens, _ in text.write_text(
            model, prompts, limits, chosen, clock, seed=seed, batch=batch, ends=(begin,)
        ):
            writing[job].add_text(tokens, model.tokenizer.vocabulary)
        drawing_now, prompts = begun("image")
        for one, generated in zip(drawing_now, artist.draw(prompts, clock)):
            one.add_image(generated)
    return [_reply(model, one, artist.grammar, clock.timing) for one in answers]


class _Answer:
    """An answer in the making. `parts`: ids int32[n] and Drawn; `mode`: what comes next."""

    def __init__(self, tokens_left: int, images_left: int, lead: Sequence[int], mode: str):
        self.parts: list[np.ndarray | GeneratedImage] = [np.array(lead, np.int32)]
        self.tokens_left, self.images_left, self.mode = tokens_left, images_left, mode
        self.complete = False

    def add_text(self, tokens: np.ndarray, vocabulary: Vocabulary) -> None:
        """Takes what was written up to an end, which says how it goes on, or to the limit."""
        self.tokens_left -= len(tokens)
        self.complete = tokens[-1] == vocabulary.end_of_turn
        begins = tokens[-1] == vocabulary.begin_of_image
        self.parts.append(tokens[:-1] if self.complete or begins else tokens)
        self.mode = "image" if begins and self.images_left else "over"

    def add_image(self, generated: GeneratedImage) -> None:
        self.parts.append(generated)
        self.images_left -= 1
        self.mode = "text" if self.tokens_left else "over"


class _ImageGenerator:
    """Draws the images of a call."""

    def __init__(self, model: Runtime, seed: int, batch: int, *, size=None, **settings):
        unknown = settings.keys() - {"guidance", "top_k", "temperature", "speculate"}
        if unknown:
            raise ValueError(
                f"drawing has no setting {min(unknown)!r}; it takes guidance, top_k, temperature, "
                "speculate and size"
            )
        self.model, self.seed, self.batch = model, seed, batch
        self.settings = image.resolve_settings(model.config, **settings)
        self.grammar = image.grammar_of(model, size)

    def draw(self, prompts: Sequence[decode.Prompt], clock: decode.Clock) -> list[GeneratedImage]:
        """An image after each of `prompts`."""
        if not prompts:
            return []
        self.model.require("vqgan/decoder", "drawing images")
        begin, numbered = np.array([self.grammar.begin]), []
        for prompt, (_, number) in zip(prompts, scheduler.rng_streams(prompts)):
            numbered.append((image.append_tokens(prompt, begin), number))
        ids = np.zeros((len(prompts), self.grammar.rows * self.grammar.columns), np.int32)
        how = {"seed": self.seed, "batch": self.batch}
        for job, tokens, _ in image.draw_codes(
            self.model, numbered, self.grammar, clock, self.settings, **how
        ):
            ids[job] = tokens
        codes = self.grammar.codes(self.grammar.tokens(ids))
        return [GeneratedImage(*pair) for pair in zip(decode_codes(self.model, codes, self.batch), codes)]


def _reply(model: Runtime, answer: _Answer, grammar: ImageGrammar, timing: decode.Timing) -> Reply:
    parts: list[str | GeneratedImage] = []
    tokens: list[np.ndarray] = []
    for part in answer.parts:
        if isinstance(part, GeneratedImage):
            parts.append(part)
            ids = grammar.code_ids[part.codes.reshape(1, -1)]
            tokens += [np.array([grammar.begin]), *grammar.tokens(ids)]
        else:
            parts += [written] if (written := model.tokenizer.decode(part)) else []
            tokens.append(part)
    return Reply(tuple(parts), np.concatenate(tokens).astype(np.int32), bool(answer.complete), timing)
