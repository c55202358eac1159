"""Runs that are killed, told to stop, or cannot save: real processes, signals and file systems."""

import itertools
import os
import pathlib
import random
import re
import resource
import signal
import time

import jax
import numpy as np
import pytest

from tests.helpers.tiny_run import log_of, start, write_run
from unitoken_jax.checkpoint.model_directory import load_model
from unitoken_jax.train.logs.metrics import read_metrics
from unitoken_jax.train.preemption import RESUMABLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 12 steps, ready to start; it saves after each, so that most moments are within a save."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, steps=12, save_every=1, keep=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The run directory of one that nothing happened to."""
    (process,) = start(folder, folder / "undisturbed")
    assert process.wait(timeout=300) == 0
    return folder / "undisturbed"


def wait_for(condition, running) -> bool:
    """Whether `condition` came true while all processes ran."""
    while all(process.poll() is None for process in running):
        if condition():
            return True
        time.sleep(0.002)
    return False


def end(running) -> None:
    for process in running:
        process.kill()
        process.wait()


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_metrics(workdir)]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(folder, undisturbed):
    """SIGKILL by turns while it starts, while a checkpoint is being written, and whenever after a step.

    Slow, since it starts eleven processes, each of which traces and loads the training step anew.
    """
    workdir, rng, started = folder / "killed", random.Random(0), 5.0
    lines, saves = workdir / "metrics.jsonl", workdir / "checkpoints"
    torn = 0
    for attempt in range(9):
        running, began = start(folder, workdir), time.monotonic()
        size = lines.stat().st_size if lines.exists() else 0
        if attempt % 3 == 0:
            time.sleep(rng.uniform(0, started))
        elif attempt % 3 == 1:
            wait_for(lambda: any(saves.glob("*.orbax-checkpoint-tmp/*/*")), running)
        else:
            wait_for(lambda: lines.exists() and lines.stat().st_size > size, running)  # noqa: B023
            started = time.monotonic() - began
            time.sleep(rng.uniform(0, 0.5))
        end(running)
        torn += any(saves.glob("*.orbax-checkpoint-tmp"))
    (process,) = start(folder, workdir)
    assert process.wait(timeout=300) == 0, log_of(workdir)
    assert torn > 2
    assert losses(workdir) == losses(undisturbed)
    assert sorted(path.name for path in saves.iterdir()) == ["11", "12"]
    found, expected = (load_model(each / "model").params for each in (workdir, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def has_children(process) -> bool:
    return bool(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


@pytest.mark.slow
def test_a_signal_to_the_whole_group_at_any_moment_saves_or_finds_nothing_begun(folder):
    """SIGTERM and Ctrl-C, as the loader's workers start and within steps.

    Slow, since it starts a process for each signal. UNITOKEN_TEST_SIGNALS=200 sends so many more, each at a
    random time of the first 20 seconds. What Python prints before our first line is its own affair.
    """
    random_times = int(os.environ.get("UNITOKEN_TEST_SIGNALS", 0))
    workdir, rng = folder / "signalled", random.Random(random_times)
    lines, saves = workdir / "metrics.jsonl", workdir / "checkpoints"
    settings = ("--config.data.workers=1", "--config.train.steps=10000")
    moments = ["workers", "workers", "step", "step", *["time"] * random_times]
    for number, moment in zip(itertools.cycle((signal.SIGTERM, signal.SIGINT)), moments):
        saved = sorted(saves.glob("[0-9]*"))
        size = lines.stat().st_size if lines.exists() else 0
        (process,) = start(folder, workdir, 1, 1, *settings, own_session=True)
        if moment == "workers":
            wait_for(lambda: has_children(process), [process])  # noqa: B023
            time.sleep(rng.uniform(0, 2))
        elif moment == "step":
            wait_for(lambda: lines.exists() and lines.stat().st_size > size, [process])  # noqa: B023
            time.sleep(rng.uniform(0, 1))
        else:
            time.sleep(rng.uniform(0, 20))
        os.killpg(process.pid, number)
        code, log = process.wait(timeout=100), log_of(workdir)
        nothing_begun = sorted(saves.glob("[0-9]*")) == saved
        assert code == RESUMABLE or (nothing_begun and code in (-number, 130)), log
        assert nothing_begun or losses(workdir)[-1][0] == max(int(path.name) for path in saves.glob("[0-9]*"))
        assert not re.search("Traceback.*unitoken_jax|Exception ignored|leaked", log, re.DOTALL), log


@pytest.mark.slow
def test_sigterm_on_one_of_two_processes_stops_both_at_one_step(folder, undisturbed):
    """The last process gets it; one process alone, on another mesh, goes on from there.

    Slow, since it starts three processes that train.
    """
    workdir = folder / "told"
    running = start(folder, workdir, processes=2, devices=2)
    assert wait_for((workdir / "metrics.jsonl").exists, running), log_of(workdir)
    running[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=300) for process in running] == [RESUMABLE] * 2, log_of(workdir)
    reached = losses(workdir)[-1][0]
    assert reached < 12
    assert max(int(path.name) for path in (workdir / "checkpoints").iterdir()) == reached
    (process,) = start(folder, workdir)
    assert process.wait(timeout=300) == 0, log_of(workdir)
    found, expected = losses(workdir), losses(undisturbed)
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], atol=1e-5)


@pytest.mark.slow
def test_a_save_that_fails_on_one_of_two_processes_ends_it_at_once(folder):
    """What the other does is up to the cluster: jax ends it when it misses this one, after minutes.

    Slow, since it starts two processes that train.
    """
    workdir = folder / "full"
    running = start(folder, workdir, processes=2)
    try:
        assert wait_for((workdir / "checkpoints/1").exists, running), log_of(workdir)
        resource.prlimit(running[1].pid, resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
        assert running[1].wait(timeout=100) == 1
    finally:
        end(running)
    assert "process 1 of 2 failed" in log_of(workdir, 1)
    assert re.search(r"could not be written to .*/checkpoints: .*File too large", log_of(workdir, 1))
    assert re.search(r"The checkpoint of step \d+ is intact", log_of(workdir, 1))
