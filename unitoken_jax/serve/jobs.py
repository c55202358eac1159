"""Requests as the decode loop sees them: what is read and written for one, piece by piece, and its events.

A job's steps run on two threads. `prepare` reads text and images on the host, wherever there is time; `task`
and what the task is told run where the model does.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from unitoken_jax.generate import chat, decode, image, scheduler, text
from unitoken_jax.generate.grammar import ImageGrammar
from unitoken_jax.generate.row_pool import DecodePlan, Request, TokenSampling
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.vq import decode_codes, encode_example_images
from unitoken_jax.sequence.conversation import GeneratedImage
from unitoken_jax.sequence.example import Example
from unitoken_jax.serve.requests import (
    EngineLimits,
    Event,
    Finished,
    ImageFinished,
    ImageRequest,
    ImageRows,
    ImageSettings,
    TextDelta,
    TextRequest,
)
from unitoken_jax.setting_ranges import check_seed

HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """Images of one size: their grammar, how they are drawn together, and the name of their lane."""

    lane: str
    grammar: ImageGrammar
    plan: DecodePlan


@dataclasses.dataclass(frozen=True, eq=False)
class Workshop:
    """What all jobs share: the model, what it may take, and the sizes of images, the default first."""

    model: Runtime
    limits: EngineLimits
    canvases: dict[tuple[int, int], Canvas]

    def canvas(self, size: tuple[int, int] | None) -> Canvas:
        """Of images of `size`. Raises ValueError where there are none, or none of that size."""
        if not self.canvases:
            raise ValueError("images are not drawn here")
        size = next(iter(self.canvases)) if size is None else size
        if size not in self.canvases:
            known = ", ".join(f"{width}x{height}" for height, width in self.canvases)
            raise ValueError(f"images of {size[1]}x{size[0]} px are not drawn here; expected one of {known}")
        return self.canvases[size]

    def check_prompt(self, source: str, tokens: int, crops: int) -> None:
        """Raises ValueError where a prompt is longer than the limits allow."""
        if tokens > self.limits.prompt_tokens:
            raise ValueError(f"{source}: {tokens} tokens; expected {self.limits.prompt_tokens} at most")
        if crops > self.limits.crops:
            raise ValueError(
                f"{source}: its images take {crops} crops; expected {self.limits.crops} at most: send fewer, "
                "or smaller ones"
            )

    def image_sampling(self, settings: ImageSettings) -> image.ImageSampling:
        """How codes are chosen. Raises ValueError for what means nothing."""
        return image.resolve_image_sampling(
            self.model.config, settings.guidance, settings.top_k, settings.temperature
        )


class Piece:
    """A stretch that is written at one time, text or an image: the request for it, the lane it belongs to,
    and what is done with its tokens, as `scheduler.Task.on_tokens`."""

    def __init__(self, lane: str, request: Request, on_tokens: Callable[[np.ndarray, bool], None]):
        self.lane, self.request, self.on_tokens = lane, request, on_tokens


class Job:
    """One request. `prepare` and `piece` in turn, until `over`; `emit` takes its events."""

    def __init__(self, workshop: Workshop, request: TextRequest | ImageRequest):
        """Raises ValueError for settings that mean nothing, or that are not to be had here."""
        self.workshop, self.emit = workshop, _drop
        self.over = False
        self.prompt_tokens = self.completion_tokens = 0
        check_seed(request.seed)
        if request.index < 0:
            raise ValueError(f"index is {request.index}; expected 0 or more")

    def prepare(self) -> None:
        """The next piece's prompt, as far as it needs no device. Raises ValueError (ConversationError,
        ImageError) for what cannot be read, and where it is too long."""
        raise NotImplementedError

    def piece(self) -> Piece:
        """What is written next, once it is prepared."""
        raise NotImplementedError

    def finish(self, reason) -> None:
        """Nothing more is written."""
        if not self.over:
            self.over = True
            self.emit(Finished(reason, self.prompt_tokens, self.completion_tokens))


class ImageJob(Job):
    """One image, of a text or as the answer to a conversation."""

    def __init__(self, workshop: Workshop, request: ImageRequest):
        super().__init__(workshop, request)
        self.request = request
        self.drawing = Drawing(workshop, request.settings, request.seed, request.index)
        self._example: Example | None = None
        if isinstance(request.prompt, str):
            image.check_prompts([request.prompt])

    def prepare(self) -> None:
        asked, model = self.request.prompt, self.workshop.model
        if isinstance(asked, str):
            self._prompt = image.drawing_prompt(model, asked)
            source, crops = "the prompt", 0
        else:
            lead = np.array(model.tokenizer.encode(model.config.sequence.text_before_image), np.int32)
            (self._example,) = text.build_examples(model, [asked], [[lead]])
            begin = np.array([self.drawing.canvas.grammar.begin], np.int32)
            self._prompt = image.append_tokens(_prompt_of(self._example), begin)
            source, crops = asked.source, len(self._example.crops)
        self.prompt_tokens = len(self._prompt.tokens)
        self.workshop.check_prompt(source, self.prompt_tokens, crops)

    def piece(self) -> Piece:
        prompt = self._prompt
        if self._example is not None:
            (example,) = encode_example_images(self.workshop.model, [self._example], 1)
            tokens = prompt.tokens.copy()
            tokens[: len(example.tokens)] = example.tokens
            prompt = prompt._replace(tokens=tokens)
        return self.drawing.piece(prompt, self._take, self.emit if self.request.partial else None)

    def _take(self, generated: GeneratedImage | None, written: int) -> None:
        self.completion_tokens = written
        if generated is not None:
            self.emit(ImageFinished(generated.image, generated.codes))
            self.finish("stop")


class TextJob(Job):
    """An answer: text alone, or text and images in turn."""

    def __init__(self, workshop: Workshop, request: TextRequest):
        super().__init__(workshop, request)
        self.request, model, limits = request, workshop.model, workshop.limits
        if request.max_images < int(request.draws):
            raise ValueError(f"max_images is {request.max_images}; expected {int(request.draws)} or more")
        limit, self._sampling = text.check_settings(
            model, request.max_tokens, request.temperature, request.top_k
        )
        if request.max_tokens is not None and limit > limits.answer_tokens:
            raise ValueError(f"max_tokens is {limit}; expected {limits.answer_tokens} at most")
        if any(not stop for stop in request.stop):
            raise ValueError("a stop text is empty; leave it out")
        self.drawing = None
        if request.max_images:
            self.drawing = Drawing(workshop, request.drawing, request.seed, request.index)
        lead = model.tokenizer.encode(model.config.sequence.text_before_image) if request.draws else []
        mode = "image" if request.draws else "text"
        self.turn = chat.OpenTurn(min(limit, limits.answer_tokens), request.max_images, lead, mode)
        self._known: dict[bytes, np.ndarray] = {}
        self._pieces = 0

    def prepare(self) -> None:
        model, conversation = self.workshop.model, self.request.conversation
        (self._example,) = text.build_examples(model, [conversation], [self.turn.parts])
        length, crops = len(self._example.tokens), len(self._example.crops)
        self.workshop.check_prompt(conversation.source, length, crops)
        if self._pieces == 0:
            lead = self.turn.parts[0]
            assert isinstance(lead, np.ndarray)
            self.prompt_tokens = length - len(lead)
        self._pieces += 1

    def piece(self) -> Piece:
        model = self.workshop.model
        (example,) = encode_example_images(model, [self._example], 1, self._known)
        prompt = _prompt_of(example)
        if self._pieces == 1 and (lead := self._decode(self.turn.parts[0])):
            self.emit(TextDelta(lead))
        self._before = self.completion_tokens
        if self.turn.mode == "image":
            assert self.drawing is not None
            begin = np.array([self.drawing.canvas.grammar.begin], np.int32)
            return self.drawing.piece(image.append_tokens(prompt, begin), self._take_image, None)
        sampling, request = self._sampling, self.request
        chosen = TokenSampling(request.seed, sampling.top_k, sampling.temperature, ends=self._ends())
        stream = (scheduler.checksum(prompt), request.index)
        self._sent = 0  # characters of this piece
        return Piece("text", Request(prompt, stream, self.turn.tokens_left, chosen), self._take_text)

    def _take_text(self, tokens: np.ndarray, done: bool) -> None:
        self.completion_tokens = self._before + len(tokens)
        end = tokens[-1] in self._ends()
        written = self._decode(tokens[:-1] if end else tokens)
        found = [at for stop in self.request.stop if (at := written.find(stop)) >= 0]
        if found:
            written = written[: min(found)]
        elif not done:
            written = written[: len(written) - _held_back(written, self.request.stop)]
        if len(written) > self._sent:
            self.emit(TextDelta(written[self._sent :]))
            self._sent = len(written)
        if found:
            self.finish("stop")
        elif done:
            self.turn.add_text(tokens, self.workshop.model.tokenizer.vocabulary)
            self._go_on()

    def _take_image(self, generated: GeneratedImage | None, written: int) -> None:
        self.completion_tokens = self._before + written
        if generated is not None:
            self.emit(ImageFinished(generated.image, generated.codes))
            self.turn.add_image(generated)
            self._go_on()

    def _go_on(self) -> None:
        if self.turn.mode == "over":
            self.finish("stop" if self.turn.complete else "length")

    def _ends(self) -> tuple[int, ...]:
        vocabulary = self.workshop.model.tokenizer.vocabulary
        return (vocabulary.end_of_turn, vocabulary.begin_of_image)[: 2 if self.request.max_images else 1]

    def _decode(self, tokens) -> str:
        return self.workshop.model.tokenizer.decode(tokens)


class Drawing:
    """How a job's images are drawn. Raises ValueError for settings that mean nothing or are not to be had."""

    def __init__(self, workshop: Workshop, settings: ImageSettings, seed: int, index: int):
        self.model, self.seed, self.index = workshop.model, seed, index
        self.canvas = workshop.canvas(settings.size)
        self.sampling = workshop.image_sampling(settings)

    def piece(
        self,
        prompt: decode.Prompt,
        take: Callable[[GeneratedImage | None, int], None],
        emit: Callable[[Event], None] | None,
    ) -> Piece:
        """An image after `prompt`, which ends with begin-of-image. `take` is told how many tokens there are,
        and the image once it is whole; `emit` gets its rows."""
        grammar, shown = self.canvas.grammar, 0

        def on_tokens(tokens: np.ndarray, done: bool) -> None:
            nonlocal shown
            ids = image.chosen_codes(self.canvas.plan, tokens)
            rows = len(ids) // grammar.columns
            if emit is not None and shown < rows < grammar.rows:
                emit(ImageRows(image.rows_so_far(self.model, grammar, ids, rows), rows, grammar.rows))
                shown = rows
            generated = None
            if done:
                codes = grammar.codes(grammar.tokens(ids[None]))
                (drawn,) = decode_codes(self.model, codes, 1)
                generated = GeneratedImage(drawn, codes[0])
            take(generated, len(tokens))

        request = image.image_request(prompt, self.index, grammar, self.sampling, self.seed)
        return Piece(self.canvas.lane, request, on_tokens)


def make_job(workshop: Workshop, request: TextRequest | ImageRequest) -> Job:
    """The job of a request. Raises ValueError as both kinds do."""
    if isinstance(request, TextRequest):
        return TextJob(workshop, request)
    return ImageJob(workshop, request)


def _prompt_of(example: Example) -> decode.Prompt:
    return decode.Prompt(example.tokens, example.image_feature_index, example.crops)


def _held_back(written: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of an unfinished text are not shown yet: the start of a stop text, or
    half a character."""
    if written.endswith(HALF_CHARACTER):
        return len(written) - len(written.rstrip(HALF_CHARACTER))
    lengths = [n for stop in stops for n in range(1, len(stop)) if written.endswith(stop[:n])]
    return max(lengths, default=0)


def _drop(event: Event) -> None:
    pass
