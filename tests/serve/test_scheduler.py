"""Who gets a row and when, with a stand-in for the model and a clock that the tests move."""

import dataclasses
import itertools

import numpy as np
import pytest

from unitoken_jax.generate import decode
from unitoken_jax.generate.row_pool import Progress, Request
from unitoken_jax.serve.scheduler import PATIENCE, Scheduler, Task

WINDOW, QUANTUM = 8, 4


class Clock:
    """Seconds, which whoever works moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class StandInPool:
    """A pool whose rows write 1, 2, 3, ... after their prompts, a token a pass; a pass takes `pass_seconds`,
    and so does a window of a prompt. What it does stays in `log`."""

    read_at_once = 2

    def __init__(self, rows: int = 2, clock: Clock | None = None, pass_seconds: float = 1e-3):
        self.rows, self.clock, self.pass_seconds = rows, clock or Clock(), pass_seconds
        self.log: list[tuple] = []
        self.broken = False
        self.reset()

    def reset(self) -> None:
        self.requests: list[Request | None] = [None] * self.rows
        self.counts, self.limits = np.zeros(self.rows, np.int32), np.zeros(self.rows, np.int32)
        self.log.append(("reset",))

    def is_long(self, request: Request) -> bool:
        return len(request.prompt.tokens) > WINDOW

    def admit(self, rows, requests) -> None:
        assert len(rows) == len(requests) <= self.read_at_once
        self._work(1, "admit", *rows)
        for row, request in zip(rows, requests):
            assert self.counts[row] >= self.limits[row], "a row that is in use"
            self.counts[row], self.limits[row] = 1, request.limit

    def begin(self, row: int, request: Request) -> None:
        self.reading = [row, request, len(request.prompt.tokens)]

    def advance(self) -> bool:
        row, request, left = self.reading
        self._work(1, "window", row)
        self.reading[2] = left - WINDOW
        if self.reading[2] <= 0:
            self.counts[row], self.limits[row] = 1, request.limit
        return self.reading[2] <= 0

    def abandon(self) -> None:
        self.log.append(("abandon",))

    def stop(self, rows) -> None:
        self.log.append(("stop", *rows))
        self.limits[list(rows)] = 0

    def write(self, min_unfinished: int, max_passes: int) -> int:
        if self.broken:
            raise RuntimeError("out of memory")
        passes = 0
        while passes < max_passes and np.sum(self.counts < self.limits) >= min_unfinished:
            self.counts += self.counts < self.limits
            passes += 1
        self._work(passes, "write", passes)
        return passes

    def progress(self) -> Progress:
        return Progress(np.tile(np.arange(1, 100), (self.rows, 1)), self.counts.copy(), self.limits.copy())

    def _work(self, passes: int, *what) -> None:
        self.log.append(what)
        self.clock.now += passes * self.pass_seconds


@dataclasses.dataclass
class Record:
    """What a task was told: `counts` of tokens, whether it is `done`, `error`, and the time of the first."""

    counts: list = dataclasses.field(default_factory=list)
    done: bool = False
    error: Exception | None = None
    first: float | None = None


def add(scheduler: Scheduler, limit: int, prompt: int = 3, lane: str = "text") -> tuple[Task, Record]:
    """Adds a task to `scheduler`."""
    record, tokens = Record(), np.zeros(prompt, np.int32)

    def on_tokens(tokens, done: bool) -> None:
        assert not record.done
        assert tokens.tolist() == list(range(1, len(tokens) + 1))
        if record.first is None:
            record.first = scheduler.clock()
        record.counts.append(len(tokens))
        record.done = done

    task = Task(
        Request(decode.Prompt(tokens, tokens), (0, 0), limit),
        on_tokens,
        lambda error: setattr(record, "error", error),
    )
    scheduler.add(lane, task)
    return task, record


def run(scheduler: Scheduler, most: int = 1000) -> int:
    """Steps until nothing is to be done; their number."""
    for step in range(most):
        if not scheduler.busy:
            return step
        scheduler.step()
    raise AssertionError("it never ends")


def scheduler_of(pool: StandInPool) -> Scheduler:
    return Scheduler({"text": pool}, QUANTUM, pool.clock)


def test_rows_are_refilled_as_they_end_and_all_is_told_bit_by_bit():
    pool = StandInPool()
    scheduler = scheduler_of(pool)
    records = [add(scheduler, limit)[1] for limit in (9, 2, 1, 5)]
    run(scheduler)
    assert all(record.done for record in records)
    assert [record.counts[-1] for record in records] == [9, 2, 1, 5]
    # A waiting prompt takes the row of the one that ends first, without waiting for the long one.
    assert records[2].counts == [1]
    assert records[0].counts[0] == 1
    assert len(records[0].counts) > 2
    assert scheduler.lanes["text"].tokens == 17


def test_a_quantum_ends_with_a_row_and_while_prompts_wait_with_as_many_as_are_read_together():
    pool = StandInPool(rows=3)
    scheduler = scheduler_of(pool)
    for limit in (20, 3, 4):
        add(scheduler, limit)
    scheduler.step()
    assert pool.log[-1] == ("write", 2)
    _, late = add(scheduler, 2)
    scheduler.step()  # a row is free: it begins at once
    assert late.counts == [1, 2]
    for limit in (2, 3, 20, 20, 20):
        add(scheduler, limit)
    scheduler.step()
    assert pool.log[-1] == ("write", 2)  # rows end after 1 and 2 passes


@pytest.mark.parametrize(("rows", "passes"), [(1, QUANTUM), (2, 2)])
def test_while_a_row_is_free_a_quantum_is_short(rows, passes):
    pool = StandInPool(rows, pass_seconds=0.4 * PATIENCE)
    scheduler = scheduler_of(pool)
    add(scheduler, 100)
    scheduler.step()  # how long a pass takes is not known yet
    scheduler.step()
    assert pool.log[-1] == ("write", passes)


def test_a_cancelled_request_frees_its_row_within_a_quantum():
    pool = StandInPool(rows=1)
    scheduler = scheduler_of(pool)
    task, record = add(scheduler, 1000)
    _, waiting = add(scheduler, 2)
    scheduler.step()
    task.cancelled = True
    before = len(record.counts)
    scheduler.step()
    assert ("stop", 0) in pool.log
    assert waiting.done
    assert len(record.counts) == before  # it is told nothing more
    assert not scheduler.busy


def test_what_is_cancelled_while_it_waits_is_never_read():
    pool = StandInPool(rows=1)
    scheduler = scheduler_of(pool)
    add(scheduler, 6)
    task, record = add(scheduler, 6)
    task.cancelled = True
    run(scheduler)
    assert record.counts == []
    assert sum(entry[0] == "admit" for entry in pool.log) == 1


def test_a_long_prompt_holds_the_others_up_for_one_window_at_a_time():
    pool = StandInPool(rows=3)
    scheduler = scheduler_of(pool)
    _, writing = add(scheduler, 40)
    scheduler.step()
    _, long = add(scheduler, 2, prompt=5 * WINDOW)
    _, second = add(scheduler, 2, prompt=2 * WINDOW)
    _, short = add(scheduler, 2)
    start = pool.clock.now
    scheduler.step()
    assert short.done  # it went by, as the second long one must wait for the first
    assert second.first is None
    run(scheduler)
    assert long.done
    assert second.done
    windows = [i for i, entry in enumerate(pool.log) if entry[0] == "window"]
    assert len(windows) == 7
    assert all(any(entry[0] == "write" for entry in pool.log[a:b]) for a, b in itertools.pairwise(windows))
    assert long.first - start <= 5 * (1 + 1 + QUANTUM) * pool.pass_seconds
    assert writing.done


def test_a_long_prompt_that_is_cancelled_is_not_read_on():
    pool = StandInPool(rows=1)
    scheduler = scheduler_of(pool)
    task, record = add(scheduler, 2, prompt=5 * WINDOW)
    _, other = add(scheduler, 2, prompt=2 * WINDOW)
    scheduler.step()
    task.cancelled = True
    run(scheduler)
    assert record.counts == []
    assert other.done
    assert ("abandon",) in pool.log
    assert sum(entry[0] == "window" for entry in pool.log) == 1 + 2


@pytest.mark.parametrize("seconds", [1e-3, 1e-2])
def test_lanes_get_equal_shares_of_the_time(seconds):
    clock = Clock()
    pools = {"text": StandInPool(1, clock), "image": StandInPool(1, clock, seconds)}
    scheduler = Scheduler(pools, QUANTUM, clock)
    add(scheduler, 400)
    for _ in range(20):
        scheduler.step()
    add(scheduler, 400, lane="image")
    begun = {name: lane.seconds for name, lane in scheduler.lanes.items()}
    for _ in range(60):
        scheduler.step()
    spent = {name: lane.seconds - begun[name] for name, lane in scheduler.lanes.items()}
    # Within one turn of each other, though text had all the time before.
    assert abs(spent["text"] - spent["image"]) <= (1 + QUANTUM) * (1e-3 + seconds)
    assert min(spent.values()) > 0


def test_a_pool_that_fails_ends_what_is_in_it_and_goes_on_with_the_others():
    pool = StandInPool(rows=1)
    scheduler = scheduler_of(pool)
    _, lost = add(scheduler, 6)
    _, waiting = add(scheduler, 6)
    pool.broken = True
    scheduler.step()
    assert "out of memory" in str(lost.error)
    pool.broken = False
    run(scheduler)
    assert pool.log.count(("reset",)) == 2
    assert waiting.done
    assert waiting.error is None
