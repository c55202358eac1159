"""Exact resume with real processes: killed at any step, on another number of processes and workers."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, data_config, write_data
from tests.helpers.processes import is_running
from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.loader import Loader

ROWS = 8
# One process of a run: its rows' digests go to a file, a line a batch, with the state after it.
PROCESS = """
if __name__ == "__main__":
    import json, sys, time
    from tests.data.test_resume import digests, load

    folder, index, count, workers, state, pause = sys.argv[1], *map(float, sys.argv[2:])
    loader = load(folder, int(workers), process_index=int(index), process_count=int(count))
    loader.restore(int(state))
    with open(f"{folder}/out-{int(index)}", "w") as out:
        for batch in loader:
            print(json.dumps([loader.state(), digests(batch)]), file=out, flush=True)
            time.sleep(pause)
"""


def load(folder, workers=0, **process):
    sources = tuple(
        SourceConfig(f"{folder}/{name}.jsonl", weight=weight) for name, weight in (("a", 1.0), ("b", 2.0))
    )
    config = data_config(sources=sources, rows=ROWS, mix="examples", workers=workers, prompt_dropout=0.5)
    return Loader(config, CONFIG, tiny_tokenizer(), 0, **process)


def digests(batch):
    """One digest a row of everything in it."""
    rows = [hashlib.sha256() for _ in batch["tokens"]]
    for name in sorted(batch):
        for digest, row in zip(rows, batch[name]):
            digest.update(np.ascontiguousarray(row).tobytes())
    return [digest.hexdigest()[:12] for digest in rows]


def lines(folder, count):
    """The lines each of `count` processes has written, whole ones only."""
    found = []
    for index in range(count):
        path = folder / f"out-{index}"
        text = path.read_text() if path.exists() else ""
        found.append([json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")])
    return found


def children(process: int) -> list[str]:
    """Processes that `process` has started."""
    tasks = pathlib.Path(f"/proc/{process}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def run(folder, count, workers, state, steps):
    """Starts `count` processes at `state` and kills them all once each has made `steps` batches."""
    (folder / "process.py").write_text(PROCESS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for path in folder.glob("out-*"):
        path.unlink()
    # A pause keeps one process from running far ahead of the others while they start.
    running = [
        subprocess.Popen(
            [sys.executable, str(folder / "process.py"), str(folder)]
            + [str(value) for value in (index, count, workers, state, 0.02)],
            env=environment,
        )
        for index in range(count)
    ]
    try:
        for made in (1, steps):
            while min(map(len, lines(folder, count))) < made:
                assert all(process.poll() is None for process in running)
                time.sleep(0.02)
            told = [child for process in running for child in children(process.pid)]
            assert made == 1 or all(map(is_running, told))
            for child in told:
                os.kill(int(child), signal.SIGTERM)  # as to a whole group; it is not for workers
    finally:
        started = [child for process in running for child in children(process.pid)]
        for process in running:
            process.kill()
            process.wait()
    while any(map(is_running, started)):
        time.sleep(0.01)  # workers end with the process that started them
    return lines(folder, count)


@pytest.mark.slow
def test_killed_anywhere_the_rows_go_on_as_if_nothing_had_been(tmp_path):
    """Two files feed eight processes; what counts is the last state that a checkpoint has seen.

    Slow, since each of the eight starts afresh.
    """
    write_data(tmp_path, [QUESTION, DRAWING, TEXT] * 7, "a.jsonl")
    write_data(tmp_path, [DRAWING, TEXT] * 9, "b.jsonl")
    whole = load(tmp_path)
    straight = [digest for _ in range(12) for digest in digests(next(whole))]
    whole.close()
    state, found = 0, []
    for count, workers, steps in ((2, 1, 3), (8, 0, 1), (1, 2, 3), (4, 0, 2)):
        made = run(tmp_path, count, workers, state, steps)
        for step in range(steps):
            after = {each[step][0] for each in made}
            assert after == {state + ROWS * (step + 1)}
            found += [digest for each in made for digest in each[step][1]]
        state += ROWS * steps
    last = load(tmp_path)
    last.restore(state)
    found += [digest for _ in range(3) for digest in digests(next(last))]
    last.close()
    assert found == straight
