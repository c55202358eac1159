"""How fast a run goes, and on how much memory: numbers that the host knows without waiting for the device."""

from collections.abc import Collection

import jax
import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.model import flops


class Throughput:
    """Counts what steps do. `rates` are `optimizer.peak_rates`: what trains; `devices` all of the mesh."""

    def __init__(self, model: ModelConfig, rates: Collection[str], devices: list):
        self._model, self._trained = model, {path.split("/")[0] for path in rates}
        self._devices = len(devices)
        self._peak = flops.device(devices[0].device_kind)

    def count(self, batch: dict) -> dict[str, float]:
        """What a batch holds: this process's rows times the processes. FLOPs as `flops.training` counts."""
        segments, processes = batch["segments"], jax.process_count()
        tokens = int(np.count_nonzero(segments)) * processes
        work = flops.batch_work(self._model, batch)
        return {
            "tokens": tokens,
            "samples": int(segments.max(axis=1).sum()) * processes,
            "packing_fill": tokens / (segments.size * processes),
            "tflop": sum(flops.training(self._model, work, self._trained).values()) * processes / 1e12,
        }

    def of(self, counts: dict[str, float], seconds: float, waited: float) -> dict[str, float]:
        """`counts` with speeds: the step took `seconds` without validation, samples and checkpoints, `waited`
        of it for the batch. `mfu` only where the device's peak is known."""
        each = counts["tflop"] / self._devices / seconds
        return counts | {
            "tokens_per_second": counts["tokens"] / seconds,
            "samples_per_second": counts["samples"] / seconds,
            "tflop_per_second_per_device": each,
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            **({} if self._peak is None else {"mfu": each * 1e12 / self._peak.flops}),
        }


def memory() -> dict[str, float]:
    """Bytes in use now and at most so far, on the fullest of this process's devices; {} where unknown."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    names = {"hbm_bytes": "bytes_in_use", "hbm_peak_bytes": "peak_bytes_in_use"}
    return {
        name: max(one[key] for one in stats)
        for name, key in names.items()
        if stats and all(key in one for one in stats)
    }
