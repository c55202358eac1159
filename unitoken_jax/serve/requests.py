"""What is asked of the engine, what it tells while it answers, and its surface: plain data, without jax.

    submit(TextRequest)    ->  TextDelta ... [ImageFinished, TextDelta ...]  Finished
    submit(ImageRequest)   ->  [ImageRows ...] ImageFinished  Finished
    anything that fails    ->  Failed, and nothing after it

A request's events depend on the request alone, not on what else is running: with the same seed they hold the
tokens that the command line writes.
"""

import asyncio
import collections
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from unitoken_jax.sequence.conversation import Conversation
from unitoken_jax.setting_ranges import Checked, Count, Natural, Positive


class QueueFull(Exception):
    """As many requests wait as may; `retry_after` is an estimate of the seconds until one has gone."""

    def __init__(self, retry_after: float):
        super().__init__(f"too many requests are waiting; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Unavailable(Exception):
    """The engine is not ready yet, is draining, or is closed: it takes no request."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSettings:
    """How images are drawn; None: the model's own setting. `guidance` 1 is none, `top_k` 1 and `temperature`
    0 are greedy. `size`: (height, width) px, one of the engine's `image_sizes`; None: the first of them."""

    guidance: float | None = None
    top_k: int | None = None
    temperature: float | None = None
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TextRequest:
    """The next turn of a conversation, as `unitoken answer` writes it; with `max_images` above 0, text and
    images in turn as `unitoken chat` does.

    Attributes:
      conversation: ends with a question; its `source` begins every error message.
      max_tokens: of text; None: the model's default. Never more than the engine's limit.
      temperature: 0 is greedy.
      top_k: the likeliest tokens that are sampled from; None: all.
      stop: texts before which the answer ends; they are not part of it.
      seed: of the noise, from 0 to 2**32 - 1.
      index: which of several answers to one question this is, counted from 0; each has noise of its own.
      max_images: in the answer; 0: text alone.
      draws: the answer begins with an image, whatever the model thinks; needs `max_images`.
      drawing: how its images are drawn.
    """

    conversation: Conversation
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    index: int = 0
    max_images: int = 0
    draws: bool = False
    drawing: ImageSettings = ImageSettings()


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRequest:
    """One image.

    Attributes:
      prompt: text, drawn as `unitoken generate` does; or a conversation that ends with a question, to which
        the image is the answer ("make it blue", after an image), as `unitoken chat --draw` draws its first.
      seed: of the noise, from 0 to 2**32 - 1.
      index: which of several images of one prompt this is, counted from 0 (`--number`).
      settings: how it is drawn.
      partial: whether ImageRows are wanted.
    """

    prompt: str | Conversation
    seed: int = 0
    index: int = 0
    settings: ImageSettings = ImageSettings()
    partial: bool = False


Request = TextRequest | ImageRequest


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer's text, never empty; it ends between characters."""

    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRows:
    """The upper `rows` of an image's `total_rows` rows of codes, as pixels of the image's full width."""

    image: Image.Image
    rows: int
    total_rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFinished:
    """A whole image. `codes` int32[h, w]: its VQ codes."""

    image: Image.Image
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of a request that did not fail.

    `reason`: "stop": the model ended its turn, a `stop` text came, or the image is whole; "length": a limit
    ended it; "cancelled". `prompt_tokens` counts the tokens of the prompt, those of its images among them;
    `completion_tokens` those that were written, the end of turn and the codes of images among them.
    """

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last event of a request that failed after it was taken. `kind`: "timeout": it took longer than
    EngineLimits.seconds; "closed": the engine was closed; "internal": a fault of the engine, which `message`
    does not describe further (its log does)."""

    kind: Literal["timeout", "closed", "internal"]
    message: str


Event = TextDelta | ImageRows | ImageFinished | Finished | Failed


class Handle:
    """A request that was taken. Iterate over it, from a thread or in asyncio, for its events: the last is
    Finished or Failed. One reader at a time; a slow one holds nobody up, as what it has not read is kept
    here (of ImageRows, only the latest)."""

    def __init__(self, request: Request, on_cancel: Callable[["Handle"], None] = lambda handle: None):
        self.request = request
        self._on_cancel = on_cancel
        self._events: collections.deque[Event] = collections.deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] = lambda: None
        self._over = False

    def cancel(self) -> None:
        """Nobody wants the rest: its row is free within one quantum. Safe from every thread, and more than
        once; the events end with Finished("cancelled"), unless they have ended already."""
        self._on_cancel(self)

    def put(self, event: Event) -> None:
        """Called by the engine: adds an event; none is taken after the last."""
        with self._changed:
            if self._over:
                return
            if isinstance(event, ImageRows) and self._events and isinstance(self._events[-1], ImageRows):
                self._events.pop()
            self._events.append(event)
            self._over = isinstance(event, Finished | Failed)
            self._changed.notify_all()
            wake = self._wake
        wake()

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._events:
                    self._changed.wait()
                event = self._events.popleft()
            yield event
            if isinstance(event, Finished | Failed):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
                loop.call_soon_threadsafe(ready.set)

        while True:
            with self._changed:
                self._wake = wake
                ready.clear()
                event = self._events.popleft() if self._events else None
            if event is None:
                await ready.wait()
                continue
            yield event
            if isinstance(event, Finished | Failed):
                return


@dataclasses.dataclass(frozen=True)
class EngineLimits(Checked):
    """What the engine may take and hold at one time. Its memory is planned from these numbers at the start.
    Raises SettingError (a ValueError) naming a number that cannot be.

    Attributes:
      text_rows, image_rows: answers and images written at one time; `image_rows` 0: none are drawn.
      prompt_tokens: of a prompt, those of its images among them.
      answer_tokens: of an answer's text.
      crops: SigLIP crops of a prompt; its images have one to five each.
      queue: requests that wait for a row; one more raises QueueFull.
      seconds: that a request may take, its waiting among them.
      quantum: passes of the decoder between two looks at the queue, at most.
    """

    text_rows: Count = 16
    image_rows: Natural = 16
    prompt_tokens: Count = 2048
    answer_tokens: Count = 512
    crops: Natural = 8
    queue: Count = 64
    seconds: Positive = 600.0
    quantum: Count = 16


@dataclasses.dataclass(frozen=True)
class PoolStats:
    """A pool of rows ("text" or "image") at one moment, and its totals since the start.

    `rows` it has, `occupied` of them in use, `waiting` requests without one, `slots` tokens a row has room
    for, `cache_bytes` its KV cache takes; `tokens` written, `passes` taken and `seconds` of device time in
    all.
    """

    rows: int
    occupied: int
    waiting: int
    slots: int
    cache_bytes: int
    tokens: int
    passes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """The engine at one moment. `taken`, `finished`, `cancelled`, `failed`, `refused` count requests since
    the start; `refused` are those that raised QueueFull."""

    pools: Mapping[str, PoolStats]
    taken: int
    finished: int
    cancelled: int
    failed: int
    refused: int


class ServingEngine(Protocol):
    """What the HTTP server needs of an engine; `serve.engine.Engine` is one. Safe from every thread."""

    limits: EngineLimits
    image_sizes: tuple[tuple[int, int], ...]
    """(height, width) px of images it draws, the default first; none where it draws none."""

    @property
    def ready(self) -> bool:
        """Whether every program is compiled and requests are taken."""

    def start(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Compiles every program, and begins to serve. `progress(done, total, what)` is called before each
        program and once after the last. ValueError where the planned memory is not free."""

    def submit(self, request: Request) -> Handle:
        """Takes a request. It reads the prompt's images, which takes milliseconds: call it outside of the
        event loop (`asyncio.to_thread`). Raises ValueError (ConversationError and ImageError are such) for
        what cannot be answered, with a message for the user; QueueFull; Unavailable."""

    def stats(self) -> EngineStats:
        """Queue, rows, memory and totals at this moment."""

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests, and waits for those that it has; False where `timeout` seconds were not
        enough."""

    def close(self) -> None:
        """Ends at once: what is unfinished ends with Failed("closed")."""
