"""What one device does in a step, counted in the compiled program: FLOPs, memory traffic, collectives."""

import collections
import dataclasses
import math
import re

import numpy as np

from unitoken_jax.planning.hlo import Computation, Instruction, Program, parse

_KINDS = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"}
_NO_TRAFFIC = {"parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier"}
_NO_TRAFFIC |= {"while", "conditional", "call", "async-start", "async-update", "after-all", "partition-id"}
_KERNELS = ("tpu_custom_call", "triton", "mosaic_gpu", "fmha")  # XLA sees no FLOPs in these
_UNKNOWN = 2**63 - 1  # cycles of what the compiler has no estimate of: gathers on a SparseCore
_TARGET = r'custom_call_target="([^"]+)"'


@dataclasses.dataclass
class Collective:
    """All collectives of a kind over groups of so many devices: `calls` in the program, `runs` in a step.

    Bytes are a device's and step's; `exposed_bytes` are of those sent that nothing else runs beside.
    """

    kind: str
    group: int
    calls: int = 0
    runs: float = 0
    bytes: float = 0
    sent_bytes: float = 0
    exposed_bytes: float = 0


@dataclasses.dataclass
class Cost:
    """A step on one device. `flops`: of matrix products and convolutions that XLA makes, without `kernels`.

    `cycles` are the TPU compiler's own estimate of everything but kernels and collectives, empty elsewhere;
    both by part of the model. `traffic`: bytes from and to main memory, as far as the program's text shows
    it. `kernels`: name -> runs. `loops`: trips of each loop, 0 for one whose length is data.
    """

    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    cycles: dict[str, float] = dataclasses.field(default_factory=dict)
    traffic: float = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    loops: list[float] = dataclasses.field(default_factory=list)


def cost(text: str, devices: int, unknown_trips: float = 1, start: str = "") -> Cost:
    """Counts the program in HLO `text` for `devices`; loops of unknown length run `unknown_trips` times.

    `start`: count what one computation does, a loop's body say, instead of the whole program.
    """
    program = parse(text, unknown_trips, start)
    flops, cycles, kernels = collections.Counter(), collections.Counter(), collections.Counter()
    found = Cost(loops=sorted(program.loops.values()))
    collectives: dict[tuple[str, int], Collective] = {}
    seen = set()  # a collective in several pieces (start, fused, done) has one channel
    for name, times in program.times.items():
        computation, context = program.computations[name], program.context[name]
        for each in computation.values():
            if done := _flops(each, computation):
                flops[_part(each)] += times * done
            if each.op.removesuffix("-start") in _KINDS:
                key = each.attribute(r"channel_id=(\d+)") or each.name
                if key not in seen:
                    seen.add(key)
                    _add_collective(collectives, each, computation, context, times, devices)
            if each.op == "custom-call" and any(name in each.attribute(_TARGET) for name in _KERNELS):
                kernels[re.sub(r"\.\d+$", "", each.name)] += times
            if context == "fused":
                continue
            found.traffic += times * _traffic(each, computation, program)
            taken = each.attribute(r'"estimated_cycles":"(\d+)"')
            if taken and int(taken) != _UNKNOWN:
                cycles[_part(each)] += times * int(taken)
    found.flops, found.cycles, found.kernels = dict(flops), dict(cycles), dict(kernels)
    found.collectives = [collectives[key] for key in sorted(collectives)]
    return found


def _part(each: Instruction) -> str:
    """Which part of the model an instruction comes from, as flax names it; "rest": loss and optimizer."""
    where = each.attribute(r'op_name="([^"]*)"')
    return next((part for part, name in _PARTS.items() if name in where), "rest")


_PARTS = {"vq": "VQModel", "siglip": "/siglip/", "adapter": "/adapter/", "decoder": "/decoder/"}


def _add_collective(totals: dict, each: Instruction, around: Computation, context, times, devices) -> None:
    kind, start = each.op.removesuffix("-start"), each.op.endswith("-start")
    inputs = sum(around[name].bytes for name in each.operands if name in around)
    payload = each.bytes
    if kind == "reduce-scatter" or (start and kind != "all-gather"):
        payload = inputs
    elif start:  # its result holds input and output
        payload -= inputs
    sliced = any(one.op == "dynamic-slice" for one in around.values())
    if kind == "all-reduce" and context == "fused" and sliced:
        kind = "reduce-scatter"  # how TPUs fuse it
    group = max(_group(each, devices), 1)
    # Of its payload, a device sends so much on a ring.
    share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1}.get(kind, (group - 1) / group)
    sent = times * payload * share
    total = totals.setdefault((kind, group), Collective(kind, group))
    total.calls += 1
    total.runs += times
    total.bytes += times * payload
    total.sent_bytes += sent
    total.exposed_bytes += sent if context == "plain" and not start else 0


def _group(each: Instruction, devices: int) -> int:
    """Devices that take part together. Forms: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'b'}, none."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", each.attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", each.attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", each.attributes):
        return len(found[1].split(","))
    return devices


def _flops(each: Instruction, around: Computation) -> float:
    """Of a dot, a convolution, or a library call that does one."""
    target = each.attribute(_TARGET) if each.op == "custom-call" else ""
    if each.op == "convolution" or target.startswith("__cudnn$conv"):
        return _convolution(each, *(around[name].shapes[0].sizes for name in each.operands[:2]))
    if each.op == "dot" or target.startswith("__cublas"):
        axes = each.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([^\]}]*)[\]}]')
        contracted = around[each.operands[0]].shapes[0].sizes
        return (
            2
            * math.prod(each.shapes[0].sizes)
            * math.prod(contracted[int(axis.strip('" '))] for axis in axes.split(",") if axis)
        )
    return 0


def _convolution(each: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> float:
    """Also how TPUs write matrix products; padding and holes are not counted."""
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes).groups()
    result = each.shapes[0].sizes
    window = dict(part.split("=") for part in each.attribute(r"window=\{([^}]*)\}").split())
    total = 2.0 * result[outputs.index("b")] * result[outputs.index("f")] * rhs[kernel.index("i")]
    for axis in filter(str.isdigit, outputs):
        given = {key: value.split("x")[int(axis)] for key, value in window.items()}
        x = np.arange(result[outputs.index(axis)])[:, None] * int(given.get("stride", 1))
        x = x + np.arange(rhs[kernel.index(axis)]) * int(given.get("rhs_dilate", 1))
        x = x - int(given.get("pad", "0_0").split("_")[0])
        dilate = int(given.get("lhs_dilate", 1))
        inside = (x >= 0) & (x % dilate == 0) & (x // dilate < lhs[inputs.index(axis)])
        total *= np.count_nonzero(inside)
    return float(total) / int(each.attribute(r"batch_group_count=(\d+)") or 1)


def _traffic(each: Instruction, around: Computation, program: Program) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    if each.op in _NO_TRAFFIC or each.op.endswith("-done"):
        return 0

    def main(instruction: Instruction) -> float:
        return sum(shape.bytes for shape in instruction.shapes if shape.space == 0)

    operands = [around[name] for name in each.operands if name in around]
    if each.op == "dynamic-update-slice":
        return 2 * main(operands[1])
    if each.op in ("dynamic-slice", "slice", "gather"):  # of what is read, as much as comes out
        return main(each) + (each.bytes if operands and main(operands[0]) else 0)
    if each.op in ("copy-start", "slice-start"):
        moved = min((shape.bytes for shape in each.shapes if shape.sizes), default=0)
        return moved * sum(shape.space == 0 for shape in each.shapes[:2])
    if each.op == "fusion" and (called := program.computations.get((each.called() or [""])[0])):
        places = [place for place, operand in enumerate(operands) if operand.shapes[0].space == 0]
        return sum(_read(called, place, program) for place in places) + _written(each, called)
    return main(each) + sum(map(main, operands))


def _read(called: Computation, place: int, program: Program) -> float:
    """What a fusion reads of its operand `place`: of what it only slices or gathers from, that; of what it
    updates in place, nothing."""
    parameters = (one for one in called.values() if one.op == "parameter")
    name = next((one.name for one in parameters if one.literal == str(place)), "")
    total = 0.0
    for use in called.values():
        for position in (i for i, operand in enumerate(use.operands) if operand == name):
            if use.op in ("slice", "dynamic-slice", "gather") and position == 0:
                total += use.bytes
            elif use.op == "fusion" and use.called()[0] in program.computations:
                total += _read(program.computations[use.called()[0]], position, program)
            elif use.op != "dynamic-update-slice" or position:
                return called[name].bytes
    return min(total, called[name].bytes) if name else 0


def _written(each: Instruction, called: Computation) -> float:
    """What a fusion writes: of what it updates in place, the updates."""
    root = called.get(called.root)
    results = [called.get(name) for name in root.operands] if root and root.op == "tuple" else [root]
    total = 0.0
    for shape, result in zip(each.shapes, results):
        if shape.space == 0:
            update = result is not None and result.op == "dynamic-update-slice"
            total += called[result.operands[1]].bytes if update else shape.bytes
    return total
