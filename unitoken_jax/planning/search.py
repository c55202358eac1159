"""`unitoken plan`: the plan of a config; with --search, the fastest mesh, remat policy and number of rows."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Literal

import jax

from unitoken_jax.config import Config, MeshConfig
from unitoken_jax.planning.plan import LOCAL, Plan, plan
from unitoken_jax.planning.report import report_lines, summary_line
from unitoken_jax.planning.topology import parse
from unitoken_jax.storage.atomic import write_text

Remat = Literal["none", "dots", "qkv", "full"]

# Sizes of the mesh's tensor axis that a search tries.
TENSOR_SIZES = (1, 2, 4)
# Rows of each group of devices that holds rows of its own, from the fewest on.
ROWS = (1, 2, 4)
# Remat policies from the fastest, which takes the most memory, on.
REMAT: tuple[Remat, ...] = ("none", "dots", "qkv", "full")


def run(
    config: Config,
    topology: str,
    *,
    json_file: str | None = None,
    searching: bool = False,
    report: Callable[[str], None] = print,
) -> int:
    """Plans or searches, reports, and writes {"plans": [Plan.to_dict, ...]}; 1 where nothing fits, else 0.

    Args:
        config: the run whose step is planned.
        topology: "local", or a TPU slice such as "v5e:16x16".
        json_file: where the plans go as JSON; FileNotFoundError, before anything is compiled, without its
            folder.
        searching: ranks meshes, remat policies and rows, not only the config's own.
        report: gets each line of the report.
    """
    if json_file and not pathlib.Path(json_file).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {json_file}: its folder does not exist")
    if searching:
        plans = search(config, topology, report)
        report("\nfastest first, by estimate:")
        for candidate in plans:
            report(summary_line(candidate))
        report("\nthe fastest in full")
    else:
        plans = [plan(config, topology)]
    for text in report_lines(plans[0]):
        report(text)
    if json_file:
        values = {"plans": [candidate.to_dict() for candidate in plans]}
        write_text(pathlib.Path(json_file), json.dumps(values, indent=1) + "\n")
    return 0 if plans[0].memory.fits else 1


def search(
    config: Config,
    topology: str,
    report: Callable[[str], None],
    compile: Callable[[Config, str], Plan] = plan,
) -> list[Plan]:
    """Plans, for every mesh and number of rows, the fastest remat policy that fits.

    Returns the plans that fit, the fastest first, and then the others. `report` gets a line for each as soon
    as it is compiled: a plan that fits takes the compiler minutes, another one seconds.
    """
    plans: list[Plan] = []
    devices = len(jax.devices()) if topology == LOCAL else parse(topology).chips
    for mesh in meshes(config, devices):
        for rows in ROWS:
            for remat in REMAT:
                candidate = compile(_with(config, mesh, rows, remat), topology)
                plans.append(candidate)
                report(summary_line(candidate))
                if candidate.memory.fits:
                    break
            else:
                break  # more rows do not fit either
    return sorted(plans, key=_rank)


def _rank(candidate: Plan) -> tuple[bool, float]:
    """What fits before what does not; then the fastest first."""
    time = candidate.time
    return not candidate.memory.fits, -candidate.tokens_per_second(time.estimate) if time else 0.0


def meshes(config: Config, devices: int) -> list[MeshConfig]:
    """Meshes worth a try: every tensor axis that divides the heads, fsdp over all else.

    Where that does not divide SigLIP's width, every device would hold all of SigLIP; then fsdp is what does,
    and data the rest.
    """
    candidates = []
    for tensor in TENSOR_SIZES:
        if devices % tensor == 0 and config.model.decoder.kv_heads % tensor == 0:
            groups = devices // tensor
            fsdp = math.gcd(groups, config.model.siglip.width)
            candidates.append(MeshConfig(data=groups // fsdp, fsdp=fsdp, tensor=tensor))
    return candidates


def _with(config: Config, mesh: MeshConfig, rows: int, remat: Remat) -> Config:
    """`config` on another mesh, with `rows` rows to each group of devices that holds rows of its own."""
    groups = mesh.data * mesh.fsdp * config.train.accumulate
    return dataclasses.replace(
        config,
        mesh=mesh,
        data=dataclasses.replace(config.data, rows=rows * groups),
        train=dataclasses.replace(config.train, remat=remat),
    )
