"""The engine: one thread that runs the model for everybody, and what others may ask of it from any thread."""

import concurrent.futures
import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from unitoken_jax.generate import image, text
from unitoken_jax.generate.memory import GIB, free_bytes
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.vq import decode_codes, encode_images
from unitoken_jax.serve.jobs import ImageLane, Job, ServedModel, make_job
from unitoken_jax.serve.pool import PoolSize, ServingPool
from unitoken_jax.serve.requests import (
    EngineLimits,
    EngineStats,
    Failed,
    Handle,
    PoolStats,
    QueueFull,
    Request,
    Unavailable,
)
from unitoken_jax.serve.scheduler import Scheduler, Task

IDLE_SECONDS = 0.25  # between two looks at the time limits while nothing runs
ENDS = 2  # ids that can end a text: the end of turn, and where images may follow, begin-of-image

log = logging.getLogger(__name__)


class _Running:
    """A job, its handle, and the task it has in a lane, if any."""

    def __init__(self, job: Job, handle: Handle, deadline: float):
        self.job, self.handle, self.deadline = job, handle, deadline
        self.task: Task | None = None


class Engine:
    """A model that many requests share; a `serve.requests.ServingEngine`.

    What it may hold is planned from `limits` at the start: two pools of rows, one for text and one for
    images, or more of these where it draws several `image_sizes`, (height, width) px; None: the size that the
    model was trained with. A model without the VQ-GAN's decoder draws none.
    """

    def __init__(
        self,
        model: Runtime,
        limits: EngineLimits = EngineLimits(),
        image_sizes: Sequence[tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model, self.limits, self._clock = model, limits, clock
        crops = limits.crops if model.params.get("siglip") else 0
        image_lanes = _image_lanes(model, image_sizes) if limits.image_rows else {}
        self.image_sizes = tuple(image_lanes)
        self._served = ServedModel(model, limits, image_lanes)
        size = PoolSize(limits.text_rows, limits.prompt_tokens, crops)
        pools = {"text": ServingPool(model, text.text_plan(limits.answer_tokens, ENDS), size)}
        for image_lane in image_lanes.values():
            size = size._replace(rows=limits.image_rows)
            pools[image_lane.lane] = ServingPool(model, image_lane.plan, size)
        self._pools = pools
        self._scheduler = Scheduler(pools, limits.quantum, clock)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._readers = concurrent.futures.ThreadPoolExecutor(2, "unitoken-reader")
        self._thread = threading.Thread(target=self._run, name="unitoken-engine", daemon=True)
        self._changed = threading.Condition()  # guards what follows
        self._running: dict[Handle, _Running] = {}
        self._counts = dict.fromkeys(("taken", "finished", "cancelled", "failed", "refused"), 0)
        self._started = self._draining = self._closed = False

    @property
    def ready(self) -> bool:
        """Whether every program is compiled and requests are taken."""
        return self._started and not self._draining

    def start(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Compiles every program, and begins to serve. `progress(done, total, what)` is called before each
        program and once after the last. ValueError where the planned memory is not free."""
        self._check_memory()
        steps: list[tuple[str, Callable[[], object]]] = []
        for name, pool in self._pools.items():
            steps.append((f"{name}: memory for {pool.rows} rows", pool.reset))
            steps += [(f"{name}: {what}", run) for what, run in pool.programs()]
        steps += self._image_programs()
        for done, (what, run) in enumerate(steps):
            if progress is not None:
                progress(done, len(steps), what)
            run()
        for pool in self._pools.values():  # on a mesh, what programs return may lie otherwise than it did
            for _, run in pool.programs():
                run()
        if progress is not None:
            progress(len(steps), len(steps), "ready")
        self._started = True
        self._thread.start()

    def submit(self, request: Request) -> Handle:
        """Takes a request. It reads the prompt's images, which takes milliseconds: call it outside of the
        event loop (`asyncio.to_thread`). Raises ValueError (ConversationError and ImageError are such) for
        what cannot be answered, with a message for the user; QueueFull; Unavailable."""
        self._check_room()
        job = make_job(self._served, request)
        job.prepare()
        handle = Handle(request, self._cancel)
        running = _Running(job, handle, self._clock() + self.limits.seconds)
        job.emit = handle.put
        with self._changed:
            self._check_room()
            self._counts["taken"] += 1
            self._running[handle] = running
        self._inbox.put(lambda: self._go_on(running))
        return handle

    def stats(self) -> EngineStats:
        """Queue, rows, memory and totals at this moment."""
        pools = {}
        for name, pool in self._pools.items():
            lane = self._scheduler.lanes[name]
            pools[name] = PoolStats(
                rows=pool.rows,
                occupied=lane.occupied,
                waiting=len(lane.waiting),
                slots=pool.slots,
                cache_bytes=pool.cache_bytes,
                tokens=lane.tokens,
                passes=pool.passes,
                seconds=lane.seconds,
            )
        with self._changed:
            return EngineStats(pools, **self._counts)

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests, and waits for those that it has; False where `timeout` seconds were not
        enough."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        """Ends at once: what is unfinished ends with Failed("closed")."""
        with self._changed:
            self._draining = self._closed = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._readers.shutdown(wait=False, cancel_futures=True)
        for running in list(self._running.values()):
            self._fail(running, "closed", "the server was closed")

    def _check_room(self) -> None:
        """Raises Unavailable, or QueueFull where as many requests wait as may."""
        if not self.ready:
            raise Unavailable("the model is not ready" if not self._draining else "the server is closing")
        rows = sum(pool.rows for pool in self._pools.values())
        occupied = sum(lane.occupied for lane in self._scheduler.lanes.values())
        waiting = sum(len(lane.waiting) for lane in self._scheduler.lanes.values())
        if waiting >= self.limits.queue or len(self._running) >= self.limits.queue + rows:
            with self._changed:
                self._counts["refused"] += 1
            done = max(self._counts["finished"], 1)
            seconds = sum(lane.seconds for lane in self._scheduler.lanes.values())
            raise QueueFull(max(1.0, waiting * seconds / done / max(occupied, 1)))

    def _check_memory(self) -> None:
        needed, free = sum(pool.cache_bytes for pool in self._pools.values()), free_bytes(self.model)
        if free is not None and needed > free:
            parts = ", ".join(
                f"{name}: {pool.rows} rows of {pool.slots} tokens" for name, pool in self._pools.items()
            )
            raise ValueError(
                f"the caches ({parts}) take {needed / GIB:.2f} GiB, but {free / GIB:.2f} GiB are free: allow "
                "fewer rows, or shorter prompts and answers"
            )

    def _image_programs(self) -> list[tuple[str, Callable[[], object]]]:
        """(what it does, a call that runs it) of the VQ-GAN's programs."""
        model, programs = self.model, list[tuple[str, Callable[[], object]]]()
        if _has(model, "vqgan/encoder"):
            height, width = model.config.sequence.image_size
            crop = np.zeros((1, height, width, 3), np.uint8)
            programs.append(("encoding images", functools.partial(encode_images, model, crop, 1)))
        for image_lane in self._served.image_lanes.values():
            codes = np.zeros((1, image_lane.grammar.rows, image_lane.grammar.columns), np.int32)
            programs.append(("decoding images", functools.partial(decode_codes, model, codes, 1)))
        return programs

    def _cancel(self, handle: Handle) -> None:
        """`Handle.cancel`."""
        running = self._running.get(handle)
        if running is not None:
            self._inbox.put(lambda: self._finish(running, "cancelled", "cancelled"))

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        while not self._closed:
            try:
                self._read_inbox()
                self._check_deadlines()
                self._scheduler.step()
            except Exception as error:
                for running in list(self._running.values()):
                    self._fault(running, error)
                time.sleep(IDLE_SECONDS)

    def _read_inbox(self) -> None:
        """All there is; waits for it while there is nothing else to do."""
        wait = not self._scheduler.busy
        while True:
            try:
                message = self._inbox.get(wait, IDLE_SECONDS)
            except queue.Empty:
                return
            wait = False
            message()

    def _check_deadlines(self) -> None:
        now = self._clock()
        for running in list(self._running.values()):
            if running.deadline < now:
                self._fail(running, "timeout", f"the answer took longer than {self.limits.seconds:.0f} s")

    def _go_on(self, running: _Running) -> None:
        """Puts the job's next piece, which is prepared, into its lane."""
        if running.handle not in self._running:  # cancelled meanwhile
            return
        with self._faults_of(running):
            piece = running.job.piece()

            def on_tokens(tokens: np.ndarray, done: bool) -> None:
                with self._faults_of(running):
                    piece.on_tokens(tokens, done)
                    if running.job.over:
                        self._end(running, "finished")
                    elif done:
                        self._readers.submit(self._prepare, running)

            running.task = Task(piece.request, on_tokens, lambda error: self._fault(running, error))
            self._scheduler.add(piece.lane, running.task)

    def _prepare(self, running: _Running) -> None:
        """Reads the prompt of the job's next piece, in a reader's thread."""
        try:
            running.job.prepare()
        except ValueError:  # it has become longer than a prompt may be
            self._inbox.put(lambda: self._finish(running, "length", "finished"))
        except Exception as error:
            self._inbox.put(functools.partial(self._fault, running, error))
        else:
            self._inbox.put(lambda: self._go_on(running))

    @contextlib.contextmanager
    def _faults_of(self, running: _Running) -> Iterator[None]:
        """Around what is one job's alone: whatever it raises ends that job."""
        try:
            yield
        except Exception as error:
            self._fault(running, error)

    def _finish(self, running: _Running, reason: Literal["length", "cancelled"], count: str) -> None:
        if running.handle in self._running:
            running.job.finish(reason)
            self._end(running, count)

    def _fault(self, running: _Running, error: Exception) -> None:
        log.error("a request failed", exc_info=error)
        self._fail(running, "internal", "the server failed")

    def _fail(self, running: _Running, kind: Literal["timeout", "closed", "internal"], message: str) -> None:
        running.handle.put(Failed(kind, message))
        self._end(running, "failed")

    def _end(self, running: _Running, count: str) -> None:
        """Nobody waits for the job any more: its row is freed, and it counts as one of `count`."""
        if running.task is not None:
            running.task.cancelled = True
        with self._changed:
            if self._running.pop(running.handle, None) is not None:
                self._counts[count] += 1
            self._changed.notify_all()


def _image_lanes(model: Runtime, sizes: Sequence[tuple[int, int]] | None) -> dict[tuple[int, int], ImageLane]:
    """The images that `model` draws, by size. ValueError for a size that it cannot draw."""
    if sizes is None:
        sizes = [model.config.sequence.image_size] if _has(model, "vqgan/decoder") else []
    window = image.resolve_image_sampling(model.config).window
    image_lanes: dict[tuple[int, int], ImageLane] = {}
    for size in sizes:
        model.require("vqgan/decoder", "drawing images")
        grammar = image.grammar_of(model, size)
        lane = f"image {size[1]}x{size[0]}" if image_lanes else "image"
        image_lanes[size] = ImageLane(lane, grammar, image.image_plan(model, grammar, window, guided=True))
    return image_lanes


def _has(model: Runtime, group: str) -> bool:
    try:
        model.require(group, "serving")
    except ValueError:
        return False
    return True
