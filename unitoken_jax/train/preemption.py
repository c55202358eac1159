"""SIGTERM, on whichever process: all of them stop at one common step."""

import signal
import threading

import jax


class Preemption:
    """Use as a context manager around the loop.

    With `jax.distributed` its own handler listens from the start, and agrees with the other processes on the
    step; a process alone gets a handler here (where it may: in the main thread).
    """

    def __init__(self):
        self._together = jax.distributed.is_initialized()
        self._terminated = threading.Event()
        self._before = None
        self._calls, self._reached = 0, False

    def reached(self) -> bool:
        """Whether to save and stop now; to be called once a step, on every process."""
        if not self._together:
            return self._terminated.is_set()
        from jax.experimental import multihost_utils

        # True at one call only. Calls are counted, not steps: a signal that comes before the first step of a
        # resumed run is answered at call 1, a number that its steps have long passed.
        self._calls += 1
        self._reached = self._reached or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._reached

    def __enter__(self) -> "Preemption":
        if not self._together and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
