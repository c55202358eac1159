"""Worker processes: which signals they hear, and what they leave behind."""

import os
import subprocess
import sys

import pytest

from tests.helpers.host_data import QUESTION, data_config, write_data

# Multiprocessing's spawned child inherits what the thread that starts it has blocked.
DEAF = """
import multiprocessing, os, signal, threading

from unitoken_jax.data.workers import deaf_to_stop_signals

def child():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    with deaf_to_stop_signals():
        thread = threading.Thread(target=process.start)
        thread.start()
        thread.join()
    process.join()
    print(process.exitcode, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""

UNCLOSED = """
if __name__ == "__main__":
    import sys
    from tests.data.test_workers import make_loader

    loader = make_loader(sys.argv[1], int(sys.argv[2]))
    print(next(loader)["tokens"].shape)
"""


def make_loader(folder, workers):
    from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
    from unitoken_jax.config import SourceConfig
    from unitoken_jax.data.loader import Loader

    config = data_config(sources=(SourceConfig(f"{folder}/a.jsonl"),), rows=2, workers=workers)
    return Loader(config, CONFIG, tiny_tokenizer(), 0)


def run(path, text, *arguments):
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_processes_started_deaf_never_hear_a_signal_to_stop(tmp_path):
    done = run(tmp_path / "deaf.py", DEAF)
    assert (done.stdout, done.stderr) == ("0 set()\n", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_nobody_closed_leaves_nothing_behind(tmp_path, workers):
    write_data(tmp_path, [QUESTION] * 9, "a.jsonl")
    done = run(tmp_path / "unclosed.py", UNCLOSED, tmp_path, workers)
    assert done.stderr == ""
    assert done.stdout.startswith("(2, ")
