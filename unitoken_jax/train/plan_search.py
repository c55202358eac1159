"""`unitoken plan`: one plan, or with --search which mesh, remat policy and number of rows is the fastest that
fits."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Callable, Iterator

from unitoken_jax.config import Config, MeshConfig, TrainConfig
from unitoken_jax.host.storage import write_text
from unitoken_jax.train.plan import Plan, devices_of, plan
from unitoken_jax.train.plan_report import line, lines

TENSOR = (1, 2, 4, 8)
ROWS = (1, 2, 4, 8)  # a group of devices that holds rows of its own
# Policies by the memory they take, least first; the last is for models that are small against their device.
REMAT = ("full", "qkv", "dots", "none")


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


def search(config: Config, topology: str, report: Callable[[str], None]) -> list[Plan]:
    """Plans of all candidates that are worth compiling, fastest first, those that do not fit last.

    What takes more than something that did not fit is not tried. `report` gets a line a candidate, as it is
    done: each takes the compiler a minute or two.
    """
    found: list[Plan] = []
    devices = len(devices_of(topology)[0])
    for tensor in _tensors(config, devices):
        failed: list[tuple[int, int]] = []  # (rows, policy) that did not fit
        for rows, policy in _candidates():
            if any(rows >= other and policy >= worse for other, worse in failed):
                continue
            one = plan(_with(config, devices, tensor, rows, REMAT[policy]), topology)
            found.append(one)
            report(line(one))
            if not one.memory.fits:
                failed.append((rows, policy))
    return sorted(found, key=lambda one: (not one.memory.fits, -(one.tokens_per_second or 0)))


def _tensors(config: Config, devices: int) -> list[int]:
    heads = config.model.decoder.kv_heads
    return [size for size in TENSOR if devices % size == 0 and heads % size == 0]


def _candidates() -> Iterator[tuple[int, int]]:
    """(rows a group, index of a policy), from the least memory on."""
    known = typing.get_args(typing.get_type_hints(TrainConfig)["remat"])
    for rows in ROWS:
        yield from ((rows, i) for i, policy in enumerate(REMAT) if policy in known)


def _with(config: Config, devices: int, tensor: int, rows: int, remat: str) -> Config:
    groups = devices // tensor
    return dataclasses.replace(
        config,
        mesh=MeshConfig(data=1, fsdp=groups, tensor=tensor),
        data=dataclasses.replace(config.data, rows=rows * groups),
        train=dataclasses.replace(config.train, remat=remat),
    )
