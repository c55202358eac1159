"""Training loop: whole runs on files on disk; resume, SIGTERM, refusal of what cannot work."""

import dataclasses
import json
import os
import resource
import signal
import time
import types

import jax
import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG as MODEL
from tests.helpers.tiny_model import noise, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_model, save_model
from unitoken_jax.config import Config, DataConfig, OptimizerConfig, ParameterGroup, SourceConfig, TrainConfig
from unitoken_jax.data.loader import Loader
from unitoken_jax.train import loop
from unitoken_jax.train.checkpoint import Checkpoints, SaveError
from unitoken_jax.train.logs.metrics import MetricsLog, read_metrics
from unitoken_jax.train.placement import check_rows
from unitoken_jax.train.preemption import RESUMABLE


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    turns = []
    for i in range(4):
        noise(i).save(folder / f"{i}.png")
        answer = [("human", "<|image|>what is this ?"), ("gpt", "a red circle")]
        drawing = [("human", f"{('one', 'two', 'three')[i % 3]} red circle"), ("gpt", "<|image|>")]
        turns += [(f"{i}.png", answer), (f"{i}.png", drawing)]
    rows = [
        {"image": image, "conversations": [{"from": who, "value": text} for who, text in conversation]}
        for image, conversation in turns
    ]
    path = folder / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def make_config(data, **train):
    settings = {"steps": 6, "dtype": "float32", "remat": "none", "loss_chunk": 16, "save_every": 5}
    return Config(
        model=dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, dropout=0.1)),
        data=DataConfig(
            sources=(data,), validation=(data,), row_length=64, row_crops=6, row_images=2, rows=2
        ),
        optimizer=OptimizerConfig(groups=(ParameterGroup("siglip|adapter|decoder", 1e-3),)),
        train=TrainConfig(**settings | train),
    )


def run(config, workdir, **more):
    return loop.train(
        config, workdir, params=tiny_params(), tokenizer=tiny_tokenizer(), progress=None, **more
    )


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    """Slow, since it trains four times."""
    config = make_config(data, validate_every=3)
    whole = run(config, tmp_path / "whole")
    write = MetricsLog.write

    def stop_after_three(self, step, metrics):
        write(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    save, written = Checkpoints.save, []

    def save_after_looking(self, state, *rest):
        written.append((int(state.step), read_metrics(tmp_path / "parts")[-1]["step"]))
        save(self, state, *rest)

    monkeypatch.setattr(MetricsLog, "write", stop_after_three)
    monkeypatch.setattr(Checkpoints, "save", save_after_looking)
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path / "parts")
    monkeypatch.undo()
    assert stopped.value.code == RESUMABLE
    assert [row["step"] for row in read_metrics(tmp_path / "parts")] == [1, 2, 3]
    assert written == [(3, 3)]  # a step's numbers are there before the checkpoint from which it goes on
    assert not (tmp_path / "parts/model").exists()
    parts = run(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    rows, expected = read_metrics(tmp_path / "parts"), read_metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "tokens", "samples"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6]
    assert rows[-1]["seconds/restore"] > rows[2]["seconds/restore"] == 0
    for kind in ("start", "compile", "productive"):  # both processes' together
        assert rows[-1][f"seconds/{kind}"] > rows[2][f"seconds/{kind}"] > 0

    # Done: nothing is trained again, and the caller's parameters are still there.
    again = run(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert np.isfinite(tiny_params()["decoder"]["lm_head"]["kernel"]).all()

    stored = load_model(tmp_path / "parts/model")
    jax.tree.map(np.testing.assert_array_equal, stored.params, whole.tree)
    assert stored.manifest["training"]["train"]["steps"] == 6

    with pytest.raises(ValueError, match=r"train\.steps: 6 there, 7 here"):
        run(make_config(data, validate_every=3, steps=7), tmp_path / "parts")


@pytest.mark.slow
def test_starts_from_a_model_directory(data, tmp_path):
    save_model(tmp_path / "model", MODEL, tiny_params(), tiny_tokenizer())
    config = make_config(data, init_from=str(tmp_path / "model"), steps=1)
    state = loop.train(config, tmp_path / "run", progress=None)
    moved = (
        np.array(state.tree["decoder"]["lm_head"]["kernel"]) - tiny_params()["decoder"]["lm_head"]["kernel"]
    )
    assert 0 < np.abs(moved).max() < 0.01
    decoder = dataclasses.replace(config.model.decoder, depth=3, dropout=0.5)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    with pytest.raises(
        ValueError, match=r"another network[^$]*config\.model\.decoder\.depth: 2 there, 3 here"
    ) as e:
        loop.train(other, tmp_path / "other", progress=None)
    assert "dropout" not in str(e.value)
    assert not (tmp_path / "other").exists()


def test_nothing_to_start_from(data, tmp_path):
    with pytest.raises(ValueError, match="nothing to start from"):
        loop.train(make_config(data), tmp_path / "run", progress=None)
    assert not (tmp_path / "run").exists()


def test_rows_must_divide_over_the_mesh(data):
    mesh = types.SimpleNamespace(shape={"data": 2, "fsdp": 2, "tensor": 1})
    with pytest.raises(ValueError, match=r"data\.rows is 2.*4 ways"):
        check_rows(make_config(data), mesh)


@pytest.mark.slow
def test_a_run_that_learns_nothing_any_more_stops_and_says_what_it_saw(data, tmp_path):
    """The first update ruins the weights, as a rate far too high does; every later step is left out."""
    config = make_config(data, steps=20, skip_limit=3, save_every=3)
    ruinous = dataclasses.replace(config.optimizer, groups=(ParameterGroup("decoder", 1e30),))
    config = dataclasses.replace(config, optimizer=ruinous)
    with pytest.raises(
        ValueError, match=r"(?s)3 steps in a row.*the last one, 4, because the .*skipped\.jsonl"
    ):
        run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert all(line["reason"].endswith("is not finite") for line in lines)
    rows = read_metrics(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 2, 3]
    loader = Loader(config.data, config.model, tiny_tokenizer(), config.train.seed)
    names = [name for row in (2, 3) for name in loader.names(row)]  # of step 2: two rows a step
    assert [(each["number"], each["epoch"]) for each in lines[0]["examples"]] == [
        (n, e) for _, e, n, _ in names
    ]
    assert {each["row"] for each in lines[0]["examples"]} == {2, 3}
    assert {each["file"] for each in lines[0]["examples"]} == {data.path}
    # The checkpoint of step 3 is there, and knows of the two steps before it.
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, skip_limit=4))
    with pytest.raises(ValueError, match=r"4 steps in a row"):
        run(resumed, tmp_path)


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_at_once_and_costs_nothing_saved(data, tmp_path, monkeypatch):
    """The disk's end is a limit on the size of files, which a checkpoint's exceed."""
    config = make_config(data, steps=15, save_every=5)
    write, limits = MetricsLog.write, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(self, step, metrics):
        write(self, step, metrics)
        if step == 6:
            while not (tmp_path / "checkpoints/5").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        time.sleep(0.5 if step > 10 else 0)  # a step of a large model

    monkeypatch.setattr(MetricsLog, "write", fill_up)
    try:
        with pytest.raises(SaveError) as error:
            run(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert f"the checkpoint of step 10 could not be written to {tmp_path / 'checkpoints'}" in str(error.value)
    assert "File too large" in str(error.value)
    assert "The checkpoint of step 5 is intact" in str(error.value)
    assert 10 <= read_metrics(tmp_path)[-1]["step"] < 15  # not only when the next one was due
    assert int(run(config, tmp_path).step) == 15
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "15"]
