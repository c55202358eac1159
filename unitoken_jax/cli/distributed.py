"""How `unitoken train` becomes one process of several: by the environment, looked at once.

    UNITOKEN_COORDINATOR=HOST:PORT  where process 0 listens
    UNITOKEN_PROCESSES=N            how many there are
    UNITOKEN_PROCESS=I              which one this is, from 0
    UNITOKEN_CPU_DEVICES=N          devices a CPU pretends to be (on its own, too)

Without the first three, what jax knows of decides: TPU pods, GKE, SLURM, Open MPI. Elsewhere a process stays
alone.
"""

import os
import sys
import traceback
from collections.abc import Mapping

import jax

COORDINATOR, PROCESSES, PROCESS = "UNITOKEN_COORDINATOR", "UNITOKEN_PROCESSES", "UNITOKEN_PROCESS"
CPU_DEVICES = "UNITOKEN_CPU_DEVICES"


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes, if there are any; returns when all are there.

    To be called once, before jax touches a device. Raises ValueError naming the variable that is wrong or
    missing.
    """
    set_cpu_devices(environ)
    names = (COORDINATOR, PROCESSES, PROCESS)
    missing = [name for name in names if not environ.get(name)]
    if not missing:
        host, _, port = environ[COORDINATOR].rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError(f"{COORDINATOR} is {environ[COORDINATOR]!r}; expected HOST:PORT")
        count = _number(environ, PROCESSES, 1)
        index = _number(environ, PROCESS, 0)
        if index >= count:
            raise ValueError(f"{PROCESS} is {index}, of {PROCESSES} {count}: they count from 0")
        # Every device of the machine is this process's, whatever a cluster's variables say.
        jax.distributed.initialize(environ[COORDINATOR], count, index, cluster_detection_method="deactivate")
    elif len(missing) < len(names):
        raise ValueError(f"{', '.join(missing)} missing: set {', '.join(names)} together, or none of them")
    else:
        _detect()


def set_cpu_devices(environ: Mapping[str, str] = os.environ) -> None:
    """Makes a CPU as many devices as the environment says, for verbs that are one process always.

    To be called once, before jax touches a device. Raises ValueError for what is no number.
    """
    if environ.get(CPU_DEVICES):
        jax.config.update("jax_num_cpu_devices", _number(environ, CPU_DEVICES, 1))


def fail() -> None:
    """Prints the exception that is being handled and ends this process at once, if it is one of several.

    To be called in an `except` block. The other processes can only wait for this one, and it would wait for
    them to end; the cluster ends them when this one is gone.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        try:
            print(f"process {jax.process_index()} of {jax.process_count()} failed:", file=sys.stderr)
            traceback.print_exc()
            sys.stdout.flush()
        finally:  # the log's disk may be full, too
            os._exit(1)


def _detect() -> None:
    """Joins as the cluster's own variables say; does nothing where jax finds no cluster."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise


def _number(environ: Mapping[str, str], name: str, minimum: int) -> int:
    """The whole number in variable `name`; ValueError for another text, or a number below `minimum`."""
    if not environ[name].isdigit() or int(environ[name]) < minimum:
        raise ValueError(f"{name} is {environ[name]!r}; expected a whole number, {minimum} or more")
    return int(environ[name])
