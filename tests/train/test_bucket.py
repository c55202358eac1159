"""Runs and models at gs:// URLs: the real clients and processes, and a bucket server of ours."""

import json
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest
from etils.epath import backend

from tests.helpers import gcs_server
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from tests.helpers.tiny_run import start, write_run
from unitoken_jax.checkpoint.model_directory import MANIFEST, load_model, open_model, save_model
from unitoken_jax.cli import main
from unitoken_jax.storage.paths import as_path
from unitoken_jax.train.checkpoint import SaveError
from unitoken_jax.train.logs.curves import draw_curves
from unitoken_jax.train.logs.metrics import read_metrics
from unitoken_jax.train.logs.run_folder import LogFolder
from unitoken_jax.train.preemption import RESUMABLE

RUN = "a run"  # a space must be quoted where a URL is one, and only there
MODEL = "gs://bucket/some/model"


@pytest.fixture(scope="module")
def server():
    """The server, which this process's clients find too."""
    with gcs_server.serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        backend.fsspec_backend._get_filesystem.cache_clear()  # another test's, of a bucket in memory
        yield server
    backend.fsspec_backend._get_filesystem.cache_clear()


def upload(folder: pathlib.Path, server, name: str) -> None:
    """As `gcloud storage cp --recursive` does."""
    for path in folder.rglob("*"):
        if path.is_file():
            server.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def host(folder: pathlib.Path, name: str):
    """A host with nothing on its disk but data and compiled programs, which takes the run up."""
    (folder / name).mkdir()
    start_from, own = "--config.train.init_from=gs://bucket/start", str(folder / name)
    (process,) = start(folder, f"gs://bucket/{RUN}", 1, 1, start_from, log=folder / name, TMPDIR=own)
    return process


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_at_another_host(tmp_path, server, capsys):
    """Slow, since it starts three processes that train."""
    write_run(tmp_path, steps=4, save_every=1, keep=2)
    upload(tmp_path / "start", server, "start")
    (here,) = start(tmp_path, tmp_path / "here")
    assert here.wait(timeout=300) == 0
    first = host(tmp_path, "first")
    while not server.names(f"{RUN}/checkpoints/1/commit_success"):
        assert first.poll() is None, (tmp_path / "first.0.log").read_text()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == RESUMABLE, (tmp_path / "first.0.log").read_text()
    seen = server.read(f"{RUN}/metrics.jsonl").splitlines()
    assert 1 <= len(seen) < 4
    second = host(tmp_path, "second")
    assert second.wait(timeout=300) == 0, (tmp_path / "second.0.log").read_text()

    lines = server.read(f"{RUN}/metrics.jsonl").splitlines()
    assert lines[: len(seen)] == seen
    losses = [(row["step"], row["loss"]) for row in map(json.loads, lines)]
    assert losses == [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "here")]
    stored = load_model(f"gs://bucket/{RUN}/model")
    jax.tree.map(np.testing.assert_array_equal, stored.params, load_model(tmp_path / "here/model").params)
    names = {re.sub(r"(checkpoints/\d+|model/params|tfevents).*", r"\1", name) for name in server.names(RUN)}
    assert {name.removeprefix(f"{RUN}/") for name in names} == {
        *("config.json", "data.json", "metrics.jsonl", "tensorboard/events.out.tfevents"),
        *("checkpoints/3", "checkpoints/4"),
        *(f"model/{name}" for name in ("config.json", "manifest.json", "params", "tokenizer.json")),
    }
    assert not any(any((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert draw_curves(f"gs://bucket/{RUN}", tmp_path / "curves.png").exists()
    command = ["train", "--config", str(tmp_path / "config.py"), "--workdir", f"gs://bucket/{RUN}"]
    assert main.main(command) == 2  # it began from another model
    assert f"gs://bucket/{RUN} holds another run" in capsys.readouterr().err


def test_a_model_at_a_url_is_complete_or_none(server, capsys):
    save_model(MODEL, CONFIG, tiny_params(), tiny_tokenizer())
    stored = load_model(MODEL)
    jax.tree.map(np.testing.assert_array_equal, stored.params, tiny_params())
    found = open_model(MODEL).params.read("decoder/lm_head/kernel", 1)
    np.testing.assert_array_equal(found, tiny_params()["decoder"]["lm_head"]["kernel"][1])

    changed = jax.tree.map(np.negative, tiny_params())
    refusing = server.refusing(r"model/params/.*manifest\.ocdbt")
    with refusing, pytest.raises(Exception, match=r"Forbidden|PERMISSION_DENIED"):
        save_model(MODEL, CONFIG, changed, tiny_tokenizer())
    with pytest.raises(FileNotFoundError, match=f"{MODEL} is no model directory: it lacks.*{MANIFEST}"):
        load_model(MODEL)
    save_model(MODEL, CONFIG, changed, tiny_tokenizer())
    jax.tree.map(np.testing.assert_array_equal, load_model(MODEL).params, changed)
    assert "some/model/unfinished" not in server.names()

    server.put("else/notes.txt", b"")
    with pytest.raises(FileExistsError, match="gs://bucket/else exists and is no model directory"):
        save_model("gs://bucket/else", CONFIG, tiny_params(), tiny_tokenizer())
    assert main.main(["inspect", MODEL]) == 0
    assert "decoder" in capsys.readouterr().out


def test_logs_that_cannot_be_sent(server, caplog):
    """Where something else has ended the run, they must not hide it."""

    def write(then):
        with LogFolder("gs://bucket/logs") as logs:
            (logs.path / "metrics.jsonl").write_text("{}\n")
            folders.append(logs.path)
            then()

    folders = []
    with server.refusing("logs/metrics"):
        with pytest.raises(
            SaveError, match=r"gs://bucket/logs/metrics\.jsonl could not be written.*orbidden"
        ):
            write(lambda: None)
        with pytest.raises(ZeroDivisionError):
            write(lambda: 1 // 0)
    assert caplog.text.count("could not be written") == 1
    assert not any(folder.exists() for folder in folders)


def test_what_other_hosts_have_written_is_seen(server):
    folder = as_path("gs://bucket/shared")
    for count, name in enumerate("ab", 1):
        server.put(f"shared/{name}", b"")
        assert len(list(folder.iterdir())) == count
