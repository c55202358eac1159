"""How a process finds its fellows: variables, each wrong one named; two real processes."""

import os
import socket
import subprocess
import sys

import pytest

from unitoken_jax.cli import distributed

TOGETHER = {
    distributed.COORDINATOR: "localhost:1234",
    distributed.PROCESSES: "2",
    distributed.PROCESS: "0",
}
SAY = """
from unitoken_jax.cli import distributed
distributed.start()
import jax
print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.distributed.is_initialized())
"""


def start(**variables):
    """A process with `variables` that says what it has become."""
    environ = {name: value for name, value in os.environ.items() if name not in TOGETHER}
    environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SAY], env=environ, stdout=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({distributed.PROCESS: ""}, "UNITOKEN_PROCESS missing: set UNITOKEN_COORDINATOR"),
        ({distributed.COORDINATOR: "here"}, "UNITOKEN_COORDINATOR is 'here'; expected HOST:PORT"),
        ({distributed.PROCESSES: "two"}, "UNITOKEN_PROCESSES is 'two'; expected a whole number, 1 or more"),
        ({distributed.PROCESS: "2"}, "UNITOKEN_PROCESS is 2, of UNITOKEN_PROCESSES 2: they count from 0"),
        ({distributed.CPU_DEVICES: "0"}, "UNITOKEN_CPU_DEVICES is '0'; expected a whole number, 1 or more"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        distributed.start(TOGETHER | changes)


@pytest.mark.slow
def test_two_processes_find_each_other_and_one_stays_alone():
    coordinator = f"localhost:{free_port()}"
    together = {distributed.COORDINATOR: coordinator, distributed.PROCESSES: "2"}
    running = [
        start(**together, **{distributed.PROCESS: str(i), distributed.CPU_DEVICES: "2"}) for i in (0, 1)
    ]
    running.append(start())
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said == ["0 2 2 True\n", "1 2 2 True\n", "0 1 1 False\n"]
