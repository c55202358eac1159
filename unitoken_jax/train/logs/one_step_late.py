"""Metrics read from the device a step late, so that neither waits for the other."""

from collections.abc import Callable, Mapping

import jax


class OneStepLate:
    """Hands each step's metrics on when the next step has been given to the device.

    Called with every step's metrics as the device will have them, and once without any, for the last;
    `on_metrics` gets the number of the step, from 1, and its metrics as floats. None: nothing is read.
    """

    def __init__(self, on_metrics: Callable[[int, dict[str, float]], None] | None):
        self._on_metrics = on_metrics
        self._step = 0
        self._pending: Mapping[str, jax.Array] | None = None

    def __call__(self, metrics: Mapping[str, jax.Array] | None = None) -> None:
        if self._pending is not None and self._on_metrics is not None:
            self._step += 1
            self._on_metrics(self._step, {name: float(value) for name, value in self._pending.items()})
        self._pending = metrics
