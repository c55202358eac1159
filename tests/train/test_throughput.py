"""What the host says of a run: where its time went, what its steps held, what they reached."""

import types

import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG
from unitoken_jax.model import flops
from unitoken_jax.train.logs import goodput, profile, throughput
from unitoken_jax.train.logs.goodput import Goodput, StepTime
from unitoken_jax.train.logs.throughput import SpeedMeter


def run(monkeypatch, laps, before=(), step=0):
    """A process that resumes at `step` and makes these (kind, seconds) laps; its metrics."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    clock = Goodput()
    clock.resume(before, step)
    for kind, seconds in laps:
        now[0] += seconds
        assert clock.lap(kind) == pytest.approx(seconds)
    return clock.metrics()


def test_all_time_is_of_some_kind_and_adds_up_over_restarts(monkeypatch):
    first = run(monkeypatch, [("start", 4), ("compile", 8), ("data", 1), ("productive", 20), ("save", 2)])
    assert first["goodput"] == pytest.approx(20 / 35)
    assert sum(first[f"seconds/{kind}"] for kind in goodput.KINDS) == pytest.approx(35)

    # The run had gone on to step 3 when it was killed, and its newest checkpoint is of step 2.
    rows = [{"step": 1}, {"step": 2, **first}, {"step": 3, **first, "seconds/productive": 26.0}]
    again = run(monkeypatch, [("restore", 5), ("productive", 6)], rows, step=2)
    assert again["seconds/start"] == 4
    assert again["seconds/productive"] == pytest.approx(26)
    assert again["seconds/lost"] == pytest.approx(6)
    assert again["goodput"] == pytest.approx(26 / (35 + 6 + 11))


def test_rows_from_before_there_was_such_a_clock_are_none(monkeypatch):
    assert run(monkeypatch, [("data", 1)], [{"step": 7, "loss": 1.0}], step=7)["seconds/data"] == 1


def devices(kind, number=4):
    return [types.SimpleNamespace(device_kind=kind)] * number


def batch():
    """Two rows: examples of 5 and 3 tokens, and one of 4; the second has a crop."""
    segments = np.array([[1] * 5 + [2] * 3 + [0] * 2, [1] * 4 + [0] * 6], np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0], [0, 1, 2, 3] + [0] * 6], np.int32)
    soft = np.full((2, 10), -1, np.int32)
    soft[0, 6:8] = 0, 1
    return {
        "segments": segments,
        "positions": positions,
        "image_feature_index": soft,
        "labels": np.maximum(segments, 0),
    }


def test_speeds_and_flops_of_a_step():
    everything = SpeedMeter(CONFIG, ["decoder/a", "adapter/b", "siglip/c"], devices("TPU v5 lite"))
    counts = everything.count(batch())
    expected = flops.training(CONFIG, flops.batch_work(CONFIG, batch()), {"decoder", "adapter", "siglip"})
    assert counts.tflop == pytest.approx(sum(expected.values()) / 1e12)
    assert (counts.tokens, counts.samples, counts.packing_fill) == (12, 3, 12 / 20)
    speeds = everything.throughput(counts, StepTime(total=0.5, data=0.1))
    assert speeds["tokens_per_second"] == 24
    assert speeds["tflop_per_second_per_device"] == pytest.approx(counts.tflop / 4 / 0.5)
    assert speeds["mfu"] == pytest.approx(speeds["tflop_per_second_per_device"] / 197)
    assert (speeds["step_seconds"], speeds["data_wait_seconds"]) == (0.5, 0.1)
    frozen = SpeedMeter(CONFIG, ["adapter/b"], devices("TPU v5 lite")).count(batch())
    assert 0 < frozen.tflop < counts.tflop


def test_no_mfu_where_the_peak_is_unknown():
    speed = SpeedMeter(CONFIG, ["decoder/a"], devices("cpu"))
    assert "mfu" not in speed.throughput(speed.count(batch()), StepTime(1.0, 0.0))


def test_a_profile_of_the_steps_asked_for(tmp_path, monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def run(first, steps, last):
        calls.clear()
        with profile.Profile(tmp_path, first, steps) as traced:
            for step in range(first, last + 1):
                with traced.begin(step):
                    calls.append(step)
                traced.end(step, None)
        return calls

    assert run(11, 2, 16) == [11, 12, 13, "start", 14, 15, "stop", 16]
    assert run(1, 9, 5) == [1, 2, 3, "start", 4, 5, "stop"]  # the run ends first
    assert run(1, 0, 5) == [1, 2, 3, 4, 5]
    assert not caplog.records
    assert run(1, 2, 3) == [1, 2, 3]
    assert "ended before step 4" in caplog.text


def test_memory_is_the_fullest_devices(monkeypatch):
    stats = [
        {"bytes_in_use": 3, "peak_bytes_in_use": 9, "more": 0},
        {"bytes_in_use": 4, "peak_bytes_in_use": 5},
    ]
    local = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(throughput.jax, "local_devices", lambda: local)
    assert throughput.memory() == {"hbm_bytes": 4, "hbm_peak_bytes": 9}
    monkeypatch.setattr(
        throughput.jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)]
    )
    assert throughput.memory() == {}
