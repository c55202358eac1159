"""How long the compiled programs of decoding took to be ready, and to run."""

import time
from typing import Any, NamedTuple

import jax

from unitoken_jax.generate import decode


class Timing(NamedTuple):
    """Where a batch's seconds went; its rows took them together.

    `compiling`: tracing, and compiling what the caches did not hold. `prefill`: reading the prompts, which
    gives the first token. `decoding`: `passes` passes, each of which gives a row a token or more.
    """

    compiling: float = 0.0
    prefill: float = 0.0
    decoding: float = 0.0
    passes: int = 0

    def __str__(self) -> str:
        milliseconds = 1e3 * self.decoding / max(self.passes, 1)
        return (
            f"first token after {self.prefill:.3f} s, then {milliseconds:.2f} ms a pass ({self.passes} "
            f"passes, {self.decoding:.2f} s); compiling took {self.compiling:.2f} s"
        )


class Clock:
    """Runs the compiled programs, and adds up in `timing` how long they took to be ready and to run."""

    def __init__(self) -> None:
        self.timing = Timing()

    def prefill(self, *arguments, **settings) -> decode.DecodeState:
        """`decode.prefill`, timed."""
        state, compiling, seconds = _timed(decode.prefill, *arguments, **settings)
        self._add(Timing(compiling, prefill=seconds))
        return state

    def write(self, *arguments, **settings) -> decode.DecodeState:
        """The state after `decode.decode_loop`, timed."""
        (state, passes), compiling, seconds = _timed(decode.decode_loop, *arguments, **settings)
        self._add(Timing(compiling, decoding=seconds, passes=int(passes)))
        return state

    def _add(self, more: Timing) -> None:
        total = self.timing
        self.timing = Timing(
            total.compiling + more.compiling,
            total.prefill + more.prefill,
            total.decoding + more.decoding,
            total.passes + more.passes,
        )


def _timed(program, *arguments, **settings) -> tuple[Any, float, float]:
    """(result of the compiled `program`, seconds until it was under way, seconds until it was done)."""
    start = time.perf_counter()
    result = program(*arguments, **settings)  # comes back once the program is compiled and under way
    launched = time.perf_counter()
    jax.block_until_ready(result)
    return result, launched - start, time.perf_counter() - launched
