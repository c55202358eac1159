"""Requests as the decode loop sees them: what is read and written for one, piece by piece, and its events.

A job's steps run on two threads: `prepare` reads text and images on the host, wherever there is time;
`piece`, and what it does with its tokens, run where the model does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from unitoken_jax.generate import chat, decode, image, scheduler, text
from unitoken_jax.generate.grammar import ImageGrammar
from unitoken_jax.generate.row_pool import DecodePlan, Request, TokenSampling
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.vq import decode_codes, encode_example_images
from unitoken_jax.sequence.conversation import Conversation, GeneratedImage
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
class ImageLane:
    """Images of one size: their grammar, how they are drawn together, and the name of their lane."""

    lane: str
    grammar: ImageGrammar
    plan: DecodePlan


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """What all jobs share: the model, what it may take, and the sizes of images, the default first."""

    model: Runtime
    limits: EngineLimits
    image_lanes: dict[tuple[int, int], ImageLane]

    def image_lane(self, size: tuple[int, int] | None) -> ImageLane:
        """Of images of `size`. Raises ValueError where there are none, or none of that size."""
        if not self.image_lanes:
            raise ValueError("images are not drawn here")
        size = next(iter(self.image_lanes)) if size is None else size
        if size not in self.image_lanes:
            known = ", ".join(f"{width}x{height}" for height, width in self.image_lanes)
            raise ValueError(f"images of {size[1]}x{size[0]} px are not drawn here; expected one of {known}")
        return self.image_lanes[size]

    def read(self, conversation: Conversation, answer: Sequence, begun: int) -> Example:
        """The conversation and what there is of its answer, without the codes of images; `begun` more tokens
        follow before anything is written. Raises ValueError (ConversationError, ImageError) for what cannot
        be read, or is longer than the limits allow."""
        (example,) = text.build_examples(self.model, [conversation], [answer])
        if len(example.images):
            self.model.require("vqgan/encoder", "reading images")
        source, crops = conversation.source, len(example.crops)
        self.check_length(source, len(example.tokens) + begun)
        if crops > self.limits.crops:
            raise ValueError(
                f"{source}: its images take {crops} crops; expected {self.limits.crops} at most: send fewer, "
                "or smaller ones"
            )
        return example

    def check_length(self, source: str, tokens: int) -> None:
        """Raises ValueError where a prompt has more tokens than it may."""
        if tokens > self.limits.prompt_tokens:
            raise ValueError(f"{source}: {tokens} tokens; expected {self.limits.prompt_tokens} at most")

    def encode(self, example: Example, known: dict[bytes, np.ndarray] | None = None) -> decode.Prompt:
        """What `read` gave, with the codes of its images; `known` as for `vq.encode_example_images`."""
        (example,) = encode_example_images(self.model, [example], 1, known)
        return decode.Prompt(example.tokens, example.image_feature_index, example.crops)

    def image_sampling(self, settings: ImageSettings) -> image.ImageSampling:
        """How codes are chosen. Raises ValueError for what means nothing."""
        return image.resolve_image_sampling(
            self.model.config, settings.guidance, settings.top_k, settings.temperature
        )


class Piece(NamedTuple):
    """A stretch that is written at one time, text or an image: the lane it belongs to, the request for it,
    and what is done with its tokens, as `scheduler.Task.on_tokens`."""

    lane: str
    request: Request
    on_tokens: Callable[[np.ndarray, bool], None]


class Job:
    """One request. `prepare` and `piece` in turn, until `over`; `emit` takes its events."""

    def __init__(self, served: ServedModel, request: TextRequest | ImageRequest):
        """Raises ValueError for settings that mean nothing, or that are not to be had here."""
        self.served, self.emit = served, _drop
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

    def __init__(self, served: ServedModel, request: ImageRequest):
        super().__init__(served, request)
        self.request = request
        self.image_writer = ImageWriter(served, request.settings, request.seed, request.index)
        self._example: Example | None = None
        if isinstance(request.prompt, str):
            image.check_prompts([request.prompt])

    def prepare(self) -> None:
        asked, model = self.request.prompt, self.served.model
        if isinstance(asked, str):
            self._prompt = image.drawing_prompt(model, asked)
            self.prompt_tokens = len(self._prompt.tokens)
            self.served.check_length("the prompt", self.prompt_tokens + self.image_writer.begun_tokens - 1)
        else:
            lead = np.array(model.tokenizer.encode(model.config.sequence.text_before_image), np.int32)
            self._example = self.served.read(asked, [lead], self.image_writer.begun_tokens)
            self.prompt_tokens = len(self._example.tokens) + 1  # and begin-of-image

    def piece(self) -> Piece:
        if self._example is not None:
            self._prompt = self.image_writer.begun(self.served.encode(self._example))
        emit = self.emit if self.request.partial else None
        return self.image_writer.piece(self._prompt, self._take, emit)

    def _take(self, generated: GeneratedImage | None, written: int) -> None:
        self.completion_tokens = written
        if generated is not None:
            self.emit(ImageFinished(generated.image, generated.codes))
            self.finish("stop")


class TextJob(Job):
    """An answer: text alone, or text and images in turn."""

    def __init__(self, served: ServedModel, request: TextRequest):
        super().__init__(served, request)
        self.request, model, limits = request, served.model, served.limits
        if request.max_images < int(request.draws):
            raise ValueError(f"max_images is {request.max_images}; expected {int(request.draws)} or more")
        limit, self._sampling = text.check_settings(
            model, request.max_tokens, request.temperature, request.top_k
        )
        if request.max_tokens is not None and limit > limits.answer_tokens:
            raise ValueError(f"max_tokens is {limit}; expected {limits.answer_tokens} at most")
        if any(not stop for stop in request.stop):
            raise ValueError("a stop text is empty; leave it out")
        self.image_writer = None
        if request.max_images:
            self.image_writer = ImageWriter(served, request.drawing, request.seed, request.index)
        lead = model.tokenizer.encode(model.config.sequence.text_before_image) if request.draws else []
        mode = "image" if request.draws else "text"
        self.turn = chat.OpenTurn(min(limit, limits.answer_tokens), request.max_images, lead, mode)
        self._known: dict[bytes, np.ndarray] = {}
        self._pieces = 0

    def prepare(self) -> None:
        begun = 0
        if self.turn.mode == "image" and self.image_writer is not None:
            begun = self.image_writer.begun_tokens
        self._example = self.served.read(self.request.conversation, self.turn.parts, begun)
        if self._pieces == 0:
            self.prompt_tokens = len(self._example.tokens)
        self._pieces += 1

    def piece(self) -> Piece:
        prompt = self.served.encode(self._example, self._known)
        if self._pieces == 1 and (lead := self._decode(self.turn.parts[0])):
            self.emit(TextDelta(lead))
        self._before = self.completion_tokens
        if self.turn.mode == "image":
            assert self.image_writer is not None
            return self.image_writer.piece(self.image_writer.begun(prompt), self._take_image, None)
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
            self.turn.add_text(tokens, self.served.model.tokenizer.vocabulary)
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
        vocabulary = self.served.model.tokenizer.vocabulary
        return (vocabulary.end_of_turn, vocabulary.begin_of_image)[: 2 if self.request.max_images else 1]

    def _decode(self, tokens) -> str:
        return self.served.model.tokenizer.decode(tokens)


class ImageWriter:
    """How a job's images are drawn. Raises ValueError for settings that mean nothing or are not to be had."""

    def __init__(self, served: ServedModel, settings: ImageSettings, seed: int, index: int):
        self.model, self.seed, self.index = served.model, seed, index
        self.image_lane = served.image_lane(settings.size)
        self.sampling = served.image_sampling(settings)

    @property
    def begun_tokens(self) -> int:
        """How many tokens an image has before its first code: begin-of-image, and its size."""
        return 1 + len(self.image_lane.grammar.head)

    def begun(self, prompt: decode.Prompt) -> decode.Prompt:
        """`prompt`, and begin-of-image after it."""
        return image.append_tokens(prompt, np.array([self.image_lane.grammar.begin], np.int32))

    def piece(
        self,
        prompt: decode.Prompt,
        take: Callable[[GeneratedImage | None, int], None],
        emit: Callable[[Event], None] | None,
    ) -> Piece:
        """An image after `prompt`, which ends with begin-of-image. `take` is told how many tokens there are,
        and the image once it is whole; `emit` gets its rows."""
        grammar, shown = self.image_lane.grammar, 0

        def on_tokens(tokens: np.ndarray, done: bool) -> None:
            nonlocal shown
            ids = image.chosen_codes(self.image_lane.plan, tokens)
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
        return Piece(self.image_lane.lane, request, on_tokens)


def make_job(served: ServedModel, request: TextRequest | ImageRequest) -> Job:
    """The job of a request. Raises ValueError as both kinds do."""
    if isinstance(request, TextRequest):
        return TextJob(served, request)
    return ImageJob(served, request)


def _held_back(written: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of an unfinished text are not shown yet: the start of a stop text, or
    half a character."""
    if written.endswith(HALF_CHARACTER):
        return len(written) - len(written.rstrip(HALF_CHARACTER))
    lengths = [n for stop in stops for n in range(1, len(stop)) if written.endswith(stop[:n])]
    return max(lengths, default=0)


def _drop(event: Event) -> None:
    pass
