"""SIGTERM and Ctrl-C, on whichever process: all of them save and stop at one common step.

Importing this imports no jax: the command line is to hear signals before that is there.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

RESUMABLE = 75  # exit code of a run that was told to stop: sysexits' "try again"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The run was told to stop; everything is saved, and the same command goes on from there."""

    def __init__(self):
        super().__init__(RESUMABLE)


class Preemption:
    """What a signal to stop means in a run, from `listen` to the end of this context manager: to save first.

    With `jax.distributed` its own handler listens for SIGTERM from the start, and agrees with the other
    processes on the step; Ctrl-C becomes a SIGTERM. A second Ctrl-C raises KeyboardInterrupt. Only the main
    thread may handle signals: in another one this changes nothing, nor does it for a signal that is ignored,
    as Ctrl-C is in a shell's background.
    """

    def __init__(self) -> None:
        import jax

        self._together = jax.distributed.is_initialized()
        self._asked = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._calls, self._reached = 0, False

    def listen(self) -> None:
        """To be called when there will soon be something to save; what came before ends a run as it would
        end any program."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS[self._together :]:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)

    def reached(self) -> bool:
        """Whether to save and stop now; to be called once a step, on every process."""
        if not self._together:
            return self._asked.is_set()
        from jax.experimental import multihost_utils

        # True at one call only. Calls are counted, not steps: a signal that comes before the first step of a
        # resumed run is answered at call 1, a number that its steps have long passed.
        self._calls += 1
        self._reached = self._reached or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._reached

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self._asked.is_set()
        self._asked.set()
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again and self._together:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: not Python's, and cannot be set again from here
                signal.signal(number, handler)
