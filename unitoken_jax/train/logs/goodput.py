"""Where a run's time goes: seconds of each kind, added up over restarts.

    start       weights, data and state in place        data        waiting for a batch
    compile     the first call of the step              save        what a checkpoint holds the loop up
    restore     reading a checkpoint                    validation, samples
    productive  steps that count                        lost        steps that a killed run had to do again

`goodput` is the productive share of all of it. What the last save of a run took is in no row any more, nor is
the time between two processes.
"""

import time
from collections.abc import Sequence

KINDS = ("start", "compile", "restore", "data", "save", "validation", "samples", "productive", "lost")
_PREFIX = "seconds/"


class Goodput:
    """A stopwatch that is never stopped: each `lap` gives the time since the last one to a kind."""

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._since = time.perf_counter()

    def lap(self, kind: str) -> float:
        """The time since the last lap, now of `kind`; in seconds."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[kind] += spent
        return spent

    def resume(self, rows: Sequence[dict], step: int) -> None:
        """Adds what a run's rows (`read_metrics`) say of its processes before, restored at `step`."""
        rows = [row for row in rows if _PREFIX + "productive" in row]
        if not rows:
            return
        for kind in KINDS:
            self.seconds[kind] += rows[-1].get(_PREFIX + kind, 0.0)
        kept = max((row[_PREFIX + "productive"] for row in rows if row["step"] <= step), default=0.0)
        again = max(rows[-1][_PREFIX + "productive"] - kept, 0.0)
        self.seconds["productive"] -= again
        self.seconds["lost"] += again

    def metrics(self) -> dict[str, float]:
        """`seconds/KIND` of every kind, and `goodput`."""
        share = self.seconds["productive"] / max(sum(self.seconds.values()), 1e-9)
        return {_PREFIX + kind: seconds for kind, seconds in self.seconds.items()} | {"goodput": share}
