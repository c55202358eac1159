"""Where a run's time goes: seconds of each kind, added up over restarts.

    start       weights, data and state in place        data        waiting for a batch
    compile     the first call of the step              save        what a checkpoint holds the loop up
    restore     reading a checkpoint                    validation, samples
    productive  steps that count                        lost        steps that a killed run had to do again

`goodput` is the productive share of all of it. Not counted: the last save of a run, after which no row is
written, and the time between two processes.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

KINDS = ("start", "compile", "restore", "data", "save", "validation", "samples", "productive", "lost")
STEP_KINDS = ("data", "compile", "productive")  # what the time of a step is made of
_PREFIX = "seconds/"


class StepTime(NamedTuple):
    """The time of one step, in seconds."""

    total: float  # from the completion of the step before to its own, of the STEP_KINDS alone
    data: float  # of it, waiting for a batch


class Goodput:
    """A stopwatch that is never stopped: each `lap` gives the time since the last one to a kind."""

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._since = time.perf_counter()
        self._last_completion = self._step_seconds()

    def lap(self, kind: str) -> float:
        """Counts the time since the last lap as `kind`, and returns it in seconds."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[kind] += spent
        return spent

    def complete_step(self) -> StepTime:
        """Ends a "productive" lap at the completion of a step; the time since the completion before it.

        Saves, validations and samples between the two have had laps of their own, and do not count.
        """
        self.lap("productive")
        before, self._last_completion = self._last_completion, self._step_seconds()
        return StepTime(*(now - then for now, then in zip(self._last_completion, before)))

    def _step_seconds(self) -> StepTime:
        """The time that all steps so far have taken together."""
        return StepTime(sum(self.seconds[kind] for kind in STEP_KINDS), self.seconds["data"])

    def resume(self, rows: Sequence[dict], step: int) -> None:
        """Adds what a run's rows (`read_metrics`) say of its processes before, restored at `step`."""
        rows = [row for row in rows if _PREFIX + "productive" in row]
        if not rows:
            return
        for kind in KINDS:
            self.seconds[kind] += rows[-1].get(_PREFIX + kind, 0.0)
        until_step = max((row[_PREFIX + "productive"] for row in rows if row["step"] <= step), default=0.0)
        lost = max(rows[-1][_PREFIX + "productive"] - until_step, 0.0)
        self.seconds["productive"] -= lost
        self.seconds["lost"] += lost
        self._last_completion = self._step_seconds()  # those steps are not this process's

    def metrics(self) -> dict[str, float]:
        """The seconds of every kind as `seconds/KIND`, and `goodput`."""
        share = self.seconds["productive"] / max(sum(self.seconds.values()), 1e-9)
        return {_PREFIX + kind: seconds for kind, seconds in self.seconds.items()} | {"goodput": share}
