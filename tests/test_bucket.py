"""A run, and models, at gs:// URLs: real processes with the real clients, against a bucket server of ours."""

import json
import pathlib
import re
import signal
import sys
import time

import gcs_server
import pytest
from tiny_run import launch, start, write_run

from unitoken_jax.train.loop import RESUMABLE
from unitoken_jax.train.metrics import read_metrics

RUN = "some run"  # a URL may have spaces; ours are quoted where they must be
READ = """
import sys, numpy as np
from flax.traverse_util import flatten_dict
from unitoken_jax import UniToken
np.savez(sys.argv[2], **flatten_dict(UniToken.load(sys.argv[1]).params, sep="/"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, steps=5, save_every=1, keep=2)
    return folder


@pytest.fixture
def server():
    with gcs_server.serve() as server:
        yield server


def upload(folder: pathlib.Path, server, name: str) -> None:
    """As `gcloud storage cp -r` does."""
    for path in folder.rglob("*"):
        if path.is_file():
            server.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def host(server, folder, log: str, *more: str):
    """A fresh host, with nothing on its disk but data and compiled programs, that goes on with the run."""
    command = ["-m", "unitoken_jax.cli", "train", "--config", str(folder / "config.py")]
    command += ["--workdir", f"gs://bucket/{RUN}", "--config.train.init_from=gs://bucket/start", *more]
    variables = {"UNITOKEN_CACHE": str(folder / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    (folder / log).mkdir()
    return launch(command, folder / log, **variables | server.environment | {"TMPDIR": str(folder / log)})


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_at_another_host(folder, server):
    (here,) = start(folder, folder / "here")
    assert here.wait(timeout=300) == 0
    upload(folder / "start", server, "start")
    (first,) = host(server, folder, "first")
    while not server.names(f"{RUN}/checkpoints/1/commit_success"):
        assert first.poll() is None, (folder / "first.0.log").read_text()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == RESUMABLE, (folder / "first.0.log").read_text()
    seen = server.read(f"{RUN}/metrics.jsonl").decode().splitlines()
    assert 1 <= len(seen) < 5
    (second,) = host(server, folder, "second")
    assert second.wait(timeout=300) == 0, (folder / "second.0.log").read_text()

    lines = server.read(f"{RUN}/metrics.jsonl").decode().splitlines()
    assert lines[: len(seen)] == seen
    losses = [(row["step"], row["loss"]) for row in map(json.loads, lines)]
    assert losses == [(row["step"], row["loss"]) for row in read_metrics(folder / "here")]
    names = [re.sub(r"tfevents.*", "tfevents", name) for name in server.names(f"{RUN}/")]
    assert {name.split("/")[2] for name in names if "/checkpoints/" in name} == {"4", "5"}
    assert names.count(f"{RUN}/tensorboard/events.out.tfevents") == 2
    assert not any((folder / log).iterdir() for log in ("first", "second"))
    command = [sys.executable, "-c", READ, f"gs://bucket/{RUN}/model", folder / "found.npz"]
    (reader,) = launch(command[1:], folder / "read", **server.environment)
    assert reader.wait(timeout=100) == 0, (folder / "read.0.log").read_text()
