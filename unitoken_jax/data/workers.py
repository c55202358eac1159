"""Processes that work for the one that trains: they live as long as it does, whatever signals come."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def deaf_to_stop_signals() -> Iterator[None]:
    """Processes and threads started in the block never hear SIGTERM or Ctrl-C, from their first moment on.

    Such a signal to a whole group of processes is for the one that trains, which needs batches up to the step
    at which it stops. A mask is what children inherit, through exec and from thread to thread; a signal that
    comes meanwhile is answered after the block.
    """
    resource_tracker.ensure_running()  # multiprocessing clears the mask where it starts this itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a process that multiprocessing has started: ends it when the one that started it is gone.

    Grain leaves this to chance: a worker of a process that was killed would wait for ever, and keep its
    shared memory.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
