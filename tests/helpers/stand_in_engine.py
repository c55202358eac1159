"""A serving engine without a model: answers and images are simple functions of the request."""

import dataclasses
import threading
import time

import numpy as np
from PIL import Image

from unitoken_jax.serve.requests import (
    EngineLimits,
    EngineStats,
    Finished,
    Handle,
    ImageFinished,
    ImageRequest,
    ImageRows,
    PoolStats,
    QueueFull,
    Request,
    TextDelta,
    TextRequest,
    Unavailable,
)

ROWS = 4  # of codes in an image


def last_words(request: Request) -> list[str]:
    """The words of the question that `request` ends with."""
    asked = request.conversation if isinstance(request, TextRequest) else request.prompt
    if isinstance(asked, str):
        return asked.split()
    return " ".join(part for part in asked.turns[-1].parts if isinstance(part, str)).split()


class StandInEngine:
    """A `ServingEngine`. An answer is "seed S index I: " and the question's words, one a TextDelta, up to
    `max_tokens` words and before a `stop` text; an image is of one colour, made of seed and index, with ROWS
    rows. `delay`: seconds before each event. While `hold` is clear, nothing goes on. `fault`: an event that
    takes the place of every request's second one. What is asked stays in `requests`."""

    def __init__(self, limits: EngineLimits = EngineLimits(), delay: float = 0.0):
        self.limits, self.delay = limits, delay
        self.image_sizes: tuple[tuple[int, int], ...] = ((16, 16), (16, 24)) if limits.image_rows else ()
        self.requests: list[Request] = []
        self.hold = threading.Event()
        self.hold.set()
        self.fault = None
        self._ready = self._draining = False
        self._running: dict[Handle, threading.Event] = {}
        self._counts = dict.fromkeys(("taken", "finished", "cancelled", "failed", "refused"), 0)
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        return self._ready and not self._draining

    def start(self, progress=None) -> None:
        for done in range(3):
            if progress is not None:
                progress(done, 2, "a program" if done < 2 else "")
        self._ready = True

    def submit(self, request: Request) -> Handle:
        if not self.ready:
            raise Unavailable("the engine is not ready")
        if isinstance(request, ImageRequest) and request.settings.size not in (None, *self.image_sizes):
            raise ValueError(f"size {request.settings.size} is not among {self.image_sizes}")
        if not last_words(request):
            raise ValueError("the prompt is empty")
        with self._lock:
            if len(self._running) >= self.limits.queue:
                self._counts["refused"] += 1
                raise QueueFull(1.0)
            self._counts["taken"] += 1
            handle = Handle(request, lambda handle: self._running.get(handle, threading.Event()).set())
            self._running[handle] = threading.Event()
            self.requests.append(request)
        threading.Thread(target=self._write, args=(handle, self._running[handle]), daemon=True).start()
        return handle

    def stats(self) -> EngineStats:
        pool = PoolStats(16, len(self._running), 0, 256, 1 << 20, 10, 5, 1.0)
        empty = dataclasses.replace(pool, occupied=0)
        return EngineStats({"text": pool, "image": empty}, **self._counts)

    def drain(self, timeout: float | None = None) -> bool:
        self._draining = True
        end = time.monotonic() + (60 if timeout is None else timeout)
        while self._running and time.monotonic() < end:
            time.sleep(0.005)
        return not self._running

    def close(self) -> None:
        self._draining = True

    def _write(self, handle: Handle, cancelled: threading.Event) -> None:
        events = _text_events if isinstance(handle.request, TextRequest) else _image_events
        for number, event in enumerate(events(handle.request)):
            time.sleep(self.delay)
            while not self.hold.wait(0.005) and not cancelled.is_set():
                pass
            if cancelled.is_set():
                event = Finished("cancelled", 1, number)
            if self.fault is not None and number == 1:
                event = self.fault
            if isinstance(event, Finished) or event is self.fault:
                name = "failed" if event is self.fault else "finished"
                with self._lock:
                    self._counts["cancelled" if cancelled.is_set() else name] += 1
                    del self._running[handle]
                handle.put(event)
                return
            handle.put(event)


def _text_events(request: TextRequest):
    words = [f"seed {request.seed} index {request.index}:", *last_words(request)]
    if request.draws:
        image = colour(request.seed, request.index)
        yield ImageFinished(image, np.zeros((ROWS, ROWS), np.int32))
    sent = 0
    for word in words[: request.max_tokens]:
        if any(stop in word for stop in request.stop):
            break
        yield TextDelta((" " if sent else "") + word)
        sent += 1
    short = request.max_tokens is not None and len(words) > request.max_tokens == sent
    yield Finished("length" if short else "stop", len(last_words(request)), sent)


def _image_events(request: ImageRequest):
    height, width = request.settings.size or (16, 16)
    image = colour(request.seed, request.index).resize((width, height))
    for row in range(1, ROWS + 1) if request.partial else ():
        yield ImageRows(image.crop((0, 0, width, height * row // ROWS)), row, ROWS)
    yield ImageFinished(image, np.zeros((ROWS, ROWS), np.int32))
    yield Finished("stop", len(last_words(request)), ROWS * ROWS)


def colour(seed: int, index: int) -> Image.Image:
    """The stand-in's image of a seed and an index, 16 x 16 px."""
    return Image.new("RGB", (16, 16), (seed % 256, index % 256, 128))
