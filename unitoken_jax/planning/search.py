"""`unitoken plan`: one plan, or with --search which mesh, remat policy and number of rows is the fastest that
fits."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import jax

from unitoken_jax.config import Config, MeshConfig
from unitoken_jax.planning.plan import LOCAL, Plan, plan
from unitoken_jax.planning.report import line, lines
from unitoken_jax.planning.topology import parse
from unitoken_jax.storage.paths import write_text

TENSOR = (1, 2, 4)
ROWS = (1, 2, 4)  # of each group of devices that holds rows of its own
REMAT = ("none", "dots", "qkv", "full")  # from the fastest, which takes the most memory, on


def run(
    config: Config,
    topology: str,
    *,
    json_file: str | None = None,
    searching: bool = False,
    report: Callable[[str], None] = print,
) -> int:
    """Plans or searches, reports, and writes {"plans": [Plan.to_dict, ...]}; 1 where nothing fits, else 0."""
    if json_file and not pathlib.Path(json_file).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"--json {json_file}: its folder does not exist"
        )  # before minutes of compiling
    if searching:
        plans = search(config, topology, report)
        report("\nfastest first, by estimate:")
        for one in plans:
            report(line(one))
        report("\nthe fastest in full")
    else:
        plans = [plan(config, topology)]
    for text in lines(plans[0]):
        report(text)
    if json_file:
        found = {"plans": [one.to_dict() for one in plans]}
        write_text(pathlib.Path(json_file), json.dumps(found, indent=1) + "\n")
    return 0 if plans[0].memory.fits else 1


def search(
    config: Config,
    topology: str,
    report: Callable[[str], None],
    compile: Callable[[Config, str], Plan] = plan,
) -> list[Plan]:
    """For every mesh and number of rows the fastest remat policy that fits: fastest plan first, what does not
    fit last.

    `report` gets a line a plan, as it is done: one that fits takes the compiler minutes, another seconds.
    """
    found: list[Plan] = []
    number = len(jax.devices()) if topology == LOCAL else parse(topology).chips
    for mesh in meshes(config, number):
        for rows in ROWS:
            for remat in REMAT:
                one = compile(_with(config, mesh, rows, remat), topology)
                found.append(one)
                report(line(one))
                if one.memory.fits:
                    break
            else:
                break  # more rows do not fit either
    return sorted(found, key=lambda one: (not one.memory.fits, -(one.tokens_per_second or 0)))


def meshes(config: Config, devices: int) -> list[MeshConfig]:
    """Meshes worth a try: every tensor axis that divides the heads, fsdp over all else.

    Where that does not divide SigLIP's width, every device would hold all of SigLIP; then fsdp is what does,
    and data the rest.
    """
    found = []
    for tensor in TENSOR:
        if devices % tensor == 0 and config.model.decoder.kv_heads % tensor == 0:
            groups = devices // tensor
            fsdp = math.gcd(groups, config.model.siglip.width)
            found.append(MeshConfig(data=groups // fsdp, fsdp=fsdp, tensor=tensor))
    return found


def _with(config: Config, mesh: MeshConfig, rows: int, remat: str) -> Config:
    groups = mesh.data * mesh.fsdp * config.train.accumulate
    return dataclasses.replace(
        config,
        mesh=mesh,
        data=dataclasses.replace(config.data, rows=rows * groups),
        train=dataclasses.replace(config.train, remat=remat),
    )
