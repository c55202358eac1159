"""Who gets a row, and whose turn it is: continuous batching, without a model, a thread or HTTP in it.

A pool of rows runs one kind of request: texts, or images of one size. Each pool has a lane, in which requests
wait for a row. A turn of a lane

    frees the rows of what was cancelled,
    reads waiting prompts into free rows,
    reads one window of a long prompt, if there is one,
    and writes for a quantum in all rows at once.

The next turn goes to the busy lane that has had the least time. So a long prompt holds the others up for one
window at a time, images and texts get equal shares of the device, and a cancelled request leaves its row
within a quantum. A quantum is a number of passes. While a row is free, whoever comes next could begin at
once, so that the quantum lasts PATIENCE seconds at most; and it ends when a row does.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from unitoken_jax.generate.row_pool import Progress, Request

PATIENCE = 0.02  # seconds; a prompt takes about as long to be read


class Pool(Protocol):
    """The rows of a decode state; `serve.pool.ServingPool` is one, whose methods say what they do."""

    rows: int

    @property
    def read_at_once(self) -> int: ...

    def is_long(self, request: Request) -> bool: ...

    def admit(self, rows: Sequence[int], requests: Sequence[Request]) -> None: ...

    def begin(self, row: int, request: Request) -> None: ...

    def advance(self) -> bool: ...

    def abandon(self) -> None: ...

    def stop(self, rows: Sequence[int]) -> None: ...

    def write(self, min_unfinished: int, max_passes: int) -> int: ...

    def progress(self) -> Progress: ...

    def reset(self) -> None: ...


@dataclasses.dataclass(eq=False)
class Task:
    """A request for a row. `on_tokens(tokens int32[n], done)` is told all that is written so far whenever it
    has become more, and `on_fault(error)` where the pool failed. `cancelled`: nobody wants the rest."""

    request: Request
    on_tokens: Callable[[np.ndarray, bool], None]
    on_fault: Callable[[Exception], None]
    cancelled: bool = False
    written: int = 0


class Lane:
    """A pool, the tasks in its rows, and those that wait for one; `seconds` of turns and `tokens` so far."""

    def __init__(self, pool: Pool, quantum: int, clock: Callable[[], float]):
        self.pool, self.quantum, self.clock = pool, quantum, clock
        self.pass_seconds = 0.0  # of the latest passes
        self.waiting: collections.deque[Task] = collections.deque()
        self.owners: list[Task | None] = [None] * pool.rows
        self.long: Task | None = None  # the one whose prompt is being read window by window
        self.seconds = 0.0
        self.tokens = 0
        self.share = 0.0  # of the device's time; a lane that was idle begins with what the others had

    @property
    def busy(self) -> bool:
        """Whether a turn has anything to do."""
        return bool(self.waiting) or self.occupied > 0

    @property
    def occupied(self) -> int:
        """Rows that are in use."""
        return sum(owner is not None for owner in self.owners)

    def turn(self, joinable: bool) -> None:
        """As the module's docstring says; `joinable`: a row of another lane is free."""
        self._drop_cancelled()
        self._admit()
        if self.long is not None and self.pool.advance():
            self.long = None
        self._report()
        writing = self.occupied - (self.long is not None)
        if writing:
            self._write(writing, joinable or self.occupied < self.pool.rows)
            self._report()

    def _write(self, writing: int, joinable: bool) -> None:
        """A quantum in `writing` rows."""
        passes = self.quantum
        if joinable and self.pass_seconds * passes > PATIENCE:
            passes = max(int(PATIENCE / self.pass_seconds), 1)
        # It ends once as many rows are free as waiting prompts can be read together.
        ended = max(min(self.pool.read_at_once, len(self.waiting)), 1)
        start = self.clock()
        taken = self.pool.write(max(writing - ended + 1, 1), passes)
        self.pass_seconds = (self.clock() - start) / max(taken, 1)

    def fail(self, error: Exception) -> None:
        """The pool failed: ends what is in its rows, and begins anew with the waiting ones."""
        lost = [task for task in self.owners if task is not None]
        self.owners, self.long = [None] * self.pool.rows, None
        for task in lost:
            if not task.cancelled:
                task.on_fault(error)
        self.pool.reset()

    def _drop_cancelled(self) -> None:
        if any(task.cancelled for task in self.waiting):
            self.waiting = collections.deque(task for task in self.waiting if not task.cancelled)
        dropped = [row for row, task in enumerate(self.owners) if task is not None and task.cancelled]
        if self.long is not None and self.long.cancelled:
            self.pool.abandon()
            self.long = None
        if dropped:
            self.pool.stop(dropped)
        for row in dropped:
            self.owners[row] = None

    def _admit(self) -> None:
        """Gives free rows to waiting tasks, first come, first served; only a long prompt that must wait for
        another long one lets others by."""
        free = [row for row, task in enumerate(self.owners) if task is None]
        short: list[Task] = []
        passed: list[Task] = []
        while self.waiting and len(short) < len(free):
            task = self.waiting.popleft()
            if not self.pool.is_long(task.request):
                short.append(task)
            elif self.long is not None:
                passed.append(task)
            else:
                self.long = task
                row = free.pop()
                self.owners[row] = task
                self.pool.begin(row, task.request)
        self.waiting.extendleft(reversed(passed))
        for row, task in zip(free, short):  # before they are read, so that none is lost where that fails
            self.owners[row] = task
        for start in range(0, len(short), self.pool.read_at_once):
            tasks = short[start : start + self.pool.read_at_once]
            self.pool.admit(free[start : start + len(tasks)], [task.request for task in tasks])

    def _report(self) -> None:
        """Tells the tasks what is new, and frees the rows of those that are done."""
        tokens, counts, limits = self.pool.progress()
        for row, task in enumerate(self.owners):
            if task is None or task is self.long or task.cancelled:
                continue
            count, done = int(counts[row]), bool(counts[row] >= limits[row])
            if done:
                self.owners[row] = None
            if done or count > task.written:
                self.tokens += count - task.written
                task.written = count
                task.on_tokens(tokens[row, :count].copy(), done)


class Scheduler:
    """The lanes of some pools, by name; a quantum is `quantum` passes at most, `clock()` are seconds.
    Everything is called from one thread."""

    def __init__(self, pools: Mapping[str, Pool], quantum: int, clock: Callable[[], float]):
        self.lanes = {name: Lane(pool, quantum, clock) for name, pool in pools.items()}
        self.clock = clock

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return any(lane.busy for lane in self.lanes.values())

    def add(self, name: str, task: Task) -> None:
        """`task` waits for a row of the lane `name`."""
        lane = self.lanes[name]
        if not lane.busy:  # what it did not use while it was idle is not made up for
            busy = [other.share for other in self.lanes.values() if other.busy]
            lane.share = max(lane.share, min(busy, default=0.0))
        lane.waiting.append(task)

    def step(self) -> None:
        """One turn of the busy lane that has had the least time. Where its pool fails, its tasks are told."""
        busy = [lane for lane in self.lanes.values() if lane.busy]
        if not busy:
            return
        lane = min(busy, key=lambda lane: lane.share)
        start = self.clock()
        try:
            others = [other for other in self.lanes.values() if other is not lane]
            lane.turn(joinable=any(other.occupied < other.pool.rows for other in others))
        except Exception as error:
            lane.fail(error)
        spent = self.clock() - start
        lane.seconds += spent
        lane.share += spent
