"""Metrics: JSONL, TensorBoard, progress without a terminal, curves."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from unitoken_jax.train.logs import metrics as m
from unitoken_jax.train.logs.curves import draw_curves
from unitoken_jax.train.logs.metrics import MetricsLog, Progress, read_metrics


def test_a_line_a_step_is_there_at_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
        log.write(2, {"loss": float("nan")})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_resumed_run_appends_and_its_repeated_steps_count(tmp_path):
    for start, loss in ((1, 3.0), (2, 1.0)):
        with MetricsLog(tmp_path) as log:
            log.write(start, {"loss": loss})
            log.write(start + 1, {"loss": loss})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [3.0, 1.0, 1.0]


def test_a_cut_last_line_is_left_out_and_others_are_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"ste')
    assert read_metrics(tmp_path) == [{"step": 1}]
    file.write_text('{"ste\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1"):
        read_metrics(tmp_path)


def test_what_a_crash_cut_off_does_not_spoil_the_next_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for left in ('{"step": 1}\n{"ste', '{"ste', ""):
        file.write_text(left)
        with MetricsLog(tmp_path) as log:
            log.write(2, {})
        assert file.read_text() == ('{"step": 1}\n' if "1" in left else "") + '{"step": 2}\n'


def test_progress_says_the_last_step_and_the_time_left_where_there_is_no_terminal(monkeypatch):
    seconds = iter([0.0, 1.0, 6.0, 6.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr(m.time, "monotonic", lambda: next(seconds))
    stream = io.StringIO()
    progress = Progress("stage1", total=30, start=10, stream=stream)
    progress.update(12, {"loss": 1.0})  # after a second: nothing
    progress.update(20, {"loss": 1.0, "tokens_per_second": 1234.0})
    assert stream.getvalue() == "stage1: step 20 of 30  loss 1.000  tokens/s 1,234  0:06 left\n"
    progress.update(30, {"loss": None})
    assert "step 30 of 30" in stream.getvalue()


def test_progress_is_a_bar_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress("stage1", total=4, stream=stream)
    progress.update(3, {"loss": 1.5})
    progress.close()
    assert "stage1" in stream.getvalue()
    assert "3/4" in stream.getvalue()


def test_clock():
    assert [m.clock(5), m.clock(185), m.clock(3725)] == ["0:05", "3:05", "1:02:05"]


def test_images_go_to_tensorboard(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.images(3, {"samples/0": np.full((8, 8, 3), 200, np.uint8)})
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"samples/0" in events.read_bytes()
    assert b"\x89PNG" in events.read_bytes()


def test_wandb_gets_the_same_run_again(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append("finished")
    )
    wandb = types.SimpleNamespace(init=lambda **about: calls.append(about) or run)
    monkeypatch.setitem(m.sys.modules, "wandb", wandb)
    assert m.wandb_run("", tmp_path, {}) is None
    for start in (1, 3):
        with MetricsLog(tmp_path, 2, wandb=m.wandb_run("unitoken", tmp_path, {"a": 1})) as log:
            log.write(start, {"loss": 1.0})
            log.write(start + 1, {"loss": 2.0, "other": float("inf")})
    first = calls[0]
    assert first["project"] == "unitoken"
    assert first["resume"] == "allow"
    assert calls == [first, (2, {"loss": 2.0}), "finished", first, (4, {"loss": 2.0}), "finished"]


def test_wandb_that_is_asked_for_must_be_there(monkeypatch):
    m.require_wandb("")
    monkeypatch.setattr(m.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"train\.wandb is 'mine', but wandb is not installed"):
        m.require_wandb("mine")


def test_curves_of_several_runs(tmp_path):
    for run, points in (("stage1", 3), ("stage2", 150)):
        with MetricsLog(tmp_path / run) as log:
            for step in range(1, points + 1):
                log.write(step, {"loss": 1 / step, "lr": 0.1})
    out = draw_curves([tmp_path / "stage1", tmp_path / "stage2"], tmp_path / "curves.png")
    with Image.open(out) as image:
        assert image.width > image.height > 100
    (tmp_path / "stage1/metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves(tmp_path / "stage1", tmp_path / "none.png")
