"""The speeds that a run logs, around saves, validations and samples: a fake device and a made clock."""

import types

import jax
import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG as MODEL
from unitoken_jax.config import Config, DataConfig, TrainConfig
from unitoken_jax.train import loop
from unitoken_jax.train.logs import goodput
from unitoken_jax.train.logs.goodput import Goodput
from unitoken_jax.train.logs.throughput import SpeedMeter
from unitoken_jax.train.loss import LossSums

STEP, DATA, SAVE, VALIDATION, SAMPLES = 2.0, 0.25, 30.0, 50.0, 70.0  # seconds
STEPS = 12


class Device:
    """Does a step after another, STEP seconds each, while the host goes on; reading a result waits for it."""

    def __init__(self):
        self.now, self.busy_until = 100.0, 0.0

    def step(self, state, batch):
        self.busy_until = max(self.busy_until, self.now) + STEP
        names = ("loss", "grad_norm", "consecutive_skips", "loss_limit", "grad_norm_limit")
        return state, dict.fromkeys(names, Result(self, self.busy_until))

    def evaluate(self, state, batch):
        self.now = max(self.now, self.busy_until) + VALIDATION
        return LossSums(np.ones(2), np.ones(()), np.ones(2), np.ones(2))

    def samples(self, params, step):
        self.now = max(self.now, self.busy_until) + SAMPLES
        return {}

    def save(self, *_):
        self.now = max(self.now, self.busy_until) + SAVE


class Result:
    """A number that is on the device from the time `ready` on."""

    def __init__(self, device: Device, ready: float):
        self.device, self.ready = device, ready

    def __float__(self) -> float:
        self.device.now = max(self.device.now, self.ready)
        return 0.0


class Loader:
    """Batches of one example of 16 tokens, DATA seconds each."""

    def __init__(self, device: Device):
        self.device, self.row = device, 0

    def __next__(self):
        self.device.now += DATA
        self.row += 1
        ones = np.ones((1, 16), np.int32)
        return {
            "segments": ones,
            "labels": ones,
            "positions": np.arange(16)[None],
            "image_feature_index": -ones,
        }

    def state(self) -> int:
        return self.row


@pytest.fixture
def run(monkeypatch):
    """rows(**train): what a run of STEPS steps with these settings of config.train writes, by step."""
    device, rows = Device(), {}
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: device.now)
    monkeypatch.setattr(loop, "shard_batch", lambda batch, mesh: batch)

    def rows_of(**train) -> dict[int, dict]:
        logs = loop.RunLogs(
            folder=types.SimpleNamespace(send=lambda: None),
            metrics=types.SimpleNamespace(write=rows.__setitem__, images=lambda *_: None),
            skips=types.SimpleNamespace(check=lambda *_: None),
            profile=loop.Profile("nowhere", 1, 0),
            speed=SpeedMeter(MODEL, ["decoder/a"], jax.devices()),
            clock=Goodput(),
        )
        result = loop.Run(
            Config(model=MODEL, data=DataConfig(rows=1), train=TrainConfig(steps=STEPS, **train)),
            None,
            loop.Programs(device.step, device.evaluate),
            Loader(device),
            types.SimpleNamespace(check=lambda: None, save=device.save),
            logs,
            types.SimpleNamespace(write_checkpoint=lambda state: None, keep_best=lambda state, metrics: None),
            validation=[{}],
            samples=types.SimpleNamespace(make=device.samples),
        )
        state = types.SimpleNamespace(step=0, tree={})
        result.run(state, types.SimpleNamespace(reached=lambda: False))
        return rows

    return rows_of


def test_a_step_takes_what_lies_between_two_completions_whatever_is_done_between_them(run):
    rows = run(save_every=4, validate_every=3, sample_every=6)
    assert list(rows) == [*range(1, STEPS + 1)]
    seconds = {step: row["step_seconds"] for step, row in rows.items()}
    # The device waits for a batch at the start, and where the host has waited for the device.
    waits = {1, 4, 5, 7, 9, 10}
    assert seconds == pytest.approx({step: STEP + DATA * (step in waits) for step in rows})
    for row in rows.values():
        assert row["tokens_per_second"] == pytest.approx(16 / row["step_seconds"])
        assert row["samples_per_second"] == pytest.approx(1 / row["step_seconds"])


def test_the_step_after_a_save_is_as_fast_as_the_others(run):
    rows = run(save_every=5, validate_every=0, sample_every=1000)
    for row in rows.values():
        assert row["tokens_per_second"] == pytest.approx(16 / STEP, rel=0.15)


def test_all_time_is_some_steps_or_has_another_name(run):
    rows = run(save_every=4, validate_every=3, sample_every=6)
    last = rows[STEPS]
    by_kind = {kind: last[f"seconds/{kind}"] for kind in ("validation", "samples", "save")}
    # Of the last step's save no row can tell.
    assert by_kind == pytest.approx({"validation": 4 * VALIDATION, "samples": 2 * SAMPLES, "save": 2 * SAVE})
    steps = sum(last[f"seconds/{kind}"] for kind in ("data", "compile", "productive"))
    assert steps == pytest.approx(sum(row["step_seconds"] for row in rows.values()))
    waited = sum(row["data_wait_seconds"] for row in rows.values())
    assert waited == pytest.approx(STEPS * DATA) == last["seconds/data"]
