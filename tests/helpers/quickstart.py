"""One short quickstart, from data to scores, for every test of the session that needs what it leaves."""

import fcntl
import pathlib

import pytest

from unitoken_jax.quickstart.run import run

MINUTES = 0.15  # the smallest data and runs of a few steps; most of what it takes is compiling


def finished_quickstart(factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run's directory. The first worker that asks makes it, while any other waits; nobody changes it."""
    session = factory.getbasetemp()
    if session.name.startswith("popen-"):
        session = session.parent  # a worker's folder lies in the session's
    out = session / "finished-quickstart"
    with (session / "quickstart.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "summary.json").exists():
            run(out, minutes=MINUTES, from_scratch=True)
    return out
