"""A trace of a few steps, for XProf, Perfetto or TensorBoard's profiler."""

import logging

import jax

log = logging.getLogger(__name__)

WARM_UP = 3  # steps of this process before the trace: the first compiles


class Profile:
    """Traces `steps` steps (0: none) of a run that begins with step `first`, into `folder`.

    Use as a context manager around the run.
    """

    def __init__(self, folder, first: int, steps: int):
        self._folder, self._steps = str(folder), steps
        self._first, self._last = first + WARM_UP, first + WARM_UP + steps - 1
        self._begun = self._running = False

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """To be called, and entered, before each step."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._begun = self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, state) -> None:
        """To be called after each step with what it makes; waits for that where the trace ends here."""
        if self._running and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self.close()
        if self._steps and not self._begun:
            log.warning("nothing was traced: the run ended before step %d, with which it begins", self._first)
