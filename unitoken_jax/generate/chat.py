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
from unitoken_jax.generate.timing import Timing
from unitoken_jax.generate.vq import decode_codes
from unitoken_jax.sequence.conversation import Conversation, GeneratedImage
from unitoken_jax.sequence.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class ChatResult:
    """An answer. `parts`: text and drawn images, in order; as they are, they can be the conversation's next
    turn. `tokens` int32[n]: all of it as the model wrote and read it, without the end of turn. `complete`:
    the model ended its turn; False: a limit did. `timing` is that of the whole call."""

    parts: tuple[str | GeneratedImage, ...]
    tokens: np.ndarray
    complete: bool
    timing: Timing

    @property
    def text(self) -> str:
        """The answer's text, without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Image.Image]:
        """The answer's images."""
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
) -> list[ChatResult]:
    """The next turn of each conversation (as for `text.answer`), with images where the model begins one.

    Args:
      draws: the answer begins with an image, whatever the model thinks: "make it blue", after an image.
      max_tokens: of text, in an answer; `max_images`: images in it. A turn ends there at the latest.
      temperature, top_k: of the text, as for `text.answer`.
      drawing: settings of the images: guidance, top_k, temperature, speculate, size, as for `image.draw`.
      seed, batch: as for `text.answer`.
    Raises ValueError as `text.answer` and `image.draw`.
    """
    text.check_conversations(conversations)
    if max_images < int(draws):
        raise ValueError(f"max_images is {max_images}; expected {int(draws)} or more")
    if draws:
        model.require("vqgan/decoder", "drawing images")
    limit, sampling = text.check_settings(model, max_tokens, temperature, top_k)
    session = scheduler.DecodeSession(model, seed, batch)
    image_generator = _ImageGenerator(session, **(drawing or {}))
    asked = [text.as_conversation(parts, number) for number, parts in enumerate(conversations)]
    lead = model.tokenizer.encode(model.config.sequence.text_before_image) if draws else []
    turns = [OpenTurn(limit, max_images, lead, "image" if draws else "text") for _ in asked]
    vocabulary = model.tokenizer.vocabulary
    known: dict[bytes, np.ndarray] = {}  # codes of the questions' images, encoded in the first round

    def waiting_for(mode: str) -> tuple[list[OpenTurn], list[decode.Prompt]]:
        """The turns that go on with `mode`, and the prompts they go on from."""
        numbers = [i for i, turn in enumerate(turns) if turn.mode == mode]
        parts = [turns[i].parts for i in numbers]
        prompts = text.build_prompts(model, [asked[i] for i in numbers], batch, parts, known)
        return [turns[i] for i in numbers], prompts

    while any(turn.mode != "over" for turn in turns):
        with_text, prompts = waiting_for("text")
        limits = [turn.tokens_left for turn in with_text]
        ends = (vocabulary.begin_of_image,)
        for request, tokens, _ in text.write_text(session, prompts, limits, sampling, ends=ends):
            with_text[request].add_text(tokens, vocabulary)
        with_image, prompts = waiting_for("image")
        for turn, generated in zip(with_image, image_generator.draw(prompts)):
            turn.add_image(generated)
    return [_chat_result(session, turn, image_generator.grammar) for turn in turns]


class OpenTurn:
    """An answer that is being written. `parts`: text as ids int32[n], and images; `mode`: what comes next,
    "text", "image", or nothing: "over"."""

    def __init__(self, tokens_left: int, images_left: int, lead: Sequence[int], mode: str):
        self.parts: list[np.ndarray | GeneratedImage] = [np.array(lead, np.int32)]
        self.tokens_left, self.images_left, self.mode = tokens_left, images_left, mode
        self.complete = False

    def add_text(self, tokens: np.ndarray, vocabulary: Vocabulary) -> None:
        """Takes what was written up to an end, which says how it goes on, or to the limit."""
        self.tokens_left -= len(tokens)
        self.complete = tokens[-1] == vocabulary.end_of_turn
        begins_image = tokens[-1] == vocabulary.begin_of_image
        self.parts.append(tokens[:-1] if self.complete or begins_image else tokens)
        self.mode = "image" if begins_image and self.images_left else "over"

    def add_image(self, generated: GeneratedImage) -> None:
        """Takes an image; text goes on if there may be more of it."""
        self.parts.append(generated)
        self.images_left -= 1
        self.mode = "text" if self.tokens_left else "over"


class _ImageGenerator:
    """Draws the images of a call."""

    def __init__(self, session: scheduler.DecodeSession, *, size: tuple[int, int] | None = None, **settings):
        unknown = settings.keys() - {"guidance", "top_k", "temperature", "speculate"}
        if unknown:
            raise ValueError(
                f"drawing has no setting {min(unknown)!r}; it takes guidance, top_k, temperature, "
                "speculate and size"
            )
        self.session = session
        self.sampling = image.resolve_image_sampling(session.model.config, **settings)
        self.grammar = image.grammar_of(session.model, size)

    def draw(self, prompts: Sequence[decode.Prompt]) -> list[GeneratedImage]:
        """An image after each of `prompts`, which do not hold its begin-of-image yet."""
        if not prompts:
            return []
        model = self.session.model
        model.require("vqgan/decoder", "drawing images")
        begin, numbered = np.array([self.grammar.begin]), []
        for prompt, (_, number) in zip(prompts, scheduler.rng_streams(prompts)):
            numbered.append((image.append_tokens(prompt, begin), number))
        ids = np.zeros((len(prompts), self.grammar.rows * self.grammar.columns), np.int32)
        for request, tokens, _ in image.draw_codes(self.session, numbered, self.grammar, self.sampling):
            ids[request] = tokens
        codes = self.grammar.codes(self.grammar.tokens(ids))
        images = decode_codes(model, codes, self.session.batch)
        return [GeneratedImage(*fields) for fields in zip(images, codes)]


def _chat_result(session: scheduler.DecodeSession, turn: OpenTurn, grammar: ImageGrammar) -> ChatResult:
    parts: list[str | GeneratedImage] = []
    tokens: list[np.ndarray] = []
    for part in turn.parts:
        if isinstance(part, GeneratedImage):
            parts.append(part)
            ids = grammar.code_ids[part.codes.reshape(1, -1)]
            tokens += [np.array([grammar.begin]), *grammar.tokens(ids)]
        else:
            parts += [written] if (written := session.model.tokenizer.decode(part)) else []
            tokens.append(part)
    all_tokens = np.concatenate(tokens).astype(np.int32)
    return ChatResult(tuple(parts), all_tokens, bool(turn.complete), session.clock.timing)
