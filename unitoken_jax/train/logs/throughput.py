"""How fast a run goes, and on how much memory: numbers that the host knows without waiting for the device."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.model import flops
from unitoken_jax.train.logs.goodput import StepTime


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """What one step over the whole mesh computes, before it is known how long it takes."""

    tokens: int  # padding left out
    samples: int  # packed examples
    packing_fill: float  # the share of the batch's positions that are tokens
    tflop: float  # as `flops.training` counts, of all devices together


class SpeedMeter:
    """Counts what steps compute, and divides it by the time that they took.

    `trained_paths` are the paths of the trained parameters (the keys of `optimizer.peak_rates`); `devices`
    are all devices of the mesh.
    """

    def __init__(self, model: ModelConfig, trained_paths: Collection[str], devices: list):
        self._model, self._trained = model, flops.trained_networks(trained_paths)
        self._devices = len(devices)
        self._peak = flops.device(devices[0].device_kind)

    def count(self, batch: Mapping[str, Any]) -> StepCounts:
        """What a step on `batch`, this process's rows, computes on all processes together."""
        segments, processes = batch["segments"], jax.process_count()
        tokens = int(np.count_nonzero(segments)) * processes
        work = flops.batch_work(self._model, batch)
        return StepCounts(
            tokens=tokens,
            samples=int(segments.max(axis=1).sum()) * processes,
            packing_fill=tokens / (segments.size * processes),
            tflop=sum(flops.training(self._model, work, self._trained).values()) * processes / 1e12,
        )

    def throughput(self, counts: StepCounts, time: StepTime) -> dict[str, float]:
        """`counts` of a step that took `time`, and its speeds, by the names that they are logged under.

        `mfu` is there only where the device's peak is known.
        """
        seconds = max(time.total, 1e-9)
        device_tflops = counts.tflop / self._devices / seconds
        speeds = {
            **dataclasses.asdict(counts),
            "tokens_per_second": counts.tokens / seconds,
            "samples_per_second": counts.samples / seconds,
            "tflop_per_second_per_device": device_tflops,
            "step_seconds": seconds,
            "data_wait_seconds": time.data,
        }
        if self._peak is not None:
            speeds["mfu"] = device_tflops * 1e12 / self._peak.flops
        return speeds


def memory() -> dict[str, float]:
    """Bytes in use now and at most so far, on the fullest of this process's devices; {} where unknown."""
    stats = [device_stats for device in jax.local_devices() if (device_stats := device.memory_stats())]
    names = {"hbm_bytes": "bytes_in_use", "hbm_peak_bytes": "peak_bytes_in_use"}
    return {
        name: max(device_stats[key] for device_stats in stats)
        for name, key in names.items()
        if stats and all(key in device_stats for device_stats in stats)
    }
