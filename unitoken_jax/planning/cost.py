"""What one device does in a step, counted in the compiled program: FLOPs, memory traffic, collectives."""

import collections
import dataclasses
import math
import re

import numpy as np

from unitoken_jax.planning.hlo import Computation, Instruction, Program, parse

_COLLECTIVES = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"}
_NO_TRAFFIC = {"parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier"}
_NO_TRAFFIC |= {"while", "conditional", "call", "async-start", "async-update", "after-all", "partition-id"}
# What is in the targets of attention kernels' calls; XLA sees no FLOPs in these.
_KERNELS = ("tpu_custom_call", "triton", "mosaic_gpu", "fmha")
# The compiler's cycles of what it has no estimate of: gathers on a SparseCore.
_UNKNOWN_CYCLES = 2**63 - 1
_TARGET = r'custom_call_target="([^"]+)"'
# Networks by what flax writes into the names of their operations.
_NETWORKS = {"vq": "VQModel", "siglip": "/siglip/", "adapter": "/adapter/", "decoder": "/decoder/"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size, on one device in one step.

    Args:
        kind: "all-gather", "all-reduce", ...
        group: devices that take part together.
        calls: such instructions in the program.
        runs: how often they run.
        bytes: their payload.
        sent_bytes: what the device sends.
        exposed_bytes: as much of that as is sent while nothing else runs.
    """

    kind: str
    group: int
    calls: int = 0
    runs: float = 0
    bytes: float = 0
    sent_bytes: float = 0
    exposed_bytes: float = 0

    def __add__(self, other: "Collective") -> "Collective":
        """The sum of two totals of one kind and group."""
        return Collective(
            self.kind,
            self.group,
            self.calls + other.calls,
            self.runs + other.runs,
            self.bytes + other.bytes,
            self.sent_bytes + other.sent_bytes,
            self.exposed_bytes + other.exposed_bytes,
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in a step.

    Args:
        flops: of matrix products and convolutions by network, without those in `kernels`.
        cycles: the TPU compiler's estimate, by network, of all but kernels and collectives; empty elsewhere.
        traffic: bytes from and to main memory, as far as the program's text shows them.
        collectives: what is sent between devices, by kind and group.
        kernels: how often each attention kernel runs, by name.
        loops: trips of each loop, 0 for one whose length is data.
    """

    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    cycles: dict[str, float] = dataclasses.field(default_factory=dict)
    traffic: float = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    loops: list[float] = dataclasses.field(default_factory=list)


def count_cost(text: str, devices: int, unknown_trips: float = 1, start: str = "") -> Cost:
    """Counts the program in HLO `text` for `devices`; loops of unknown length run `unknown_trips` times.

    `start`: count what one computation does, a loop's body say, instead of the whole program.
    """
    program = parse(text, unknown_trips, start)
    flops: dict[str, float] = collections.defaultdict(float)
    cycles: dict[str, float] = collections.defaultdict(float)
    kernels: dict[str, float] = collections.defaultdict(float)
    traffic = 0.0
    for name, times in program.times.items():
        computation = program.computations[name]
        for instruction in computation.values():
            if instruction_flops := _flops(instruction, computation):
                flops[_network(instruction)] += times * instruction_flops
            if instruction.op == "custom-call" and any(
                kernel in instruction.attribute(_TARGET) for kernel in _KERNELS
            ):
                kernels[re.sub(r"\.\d+$", "", instruction.name)] += times
            if program.context[name] == "fused":
                continue
            traffic += times * instruction_traffic(instruction, computation, program)
            estimate = instruction.attribute(r'"estimated_cycles":"(\d+)"')
            if estimate and int(estimate) != _UNKNOWN_CYCLES:
                cycles[_network(instruction)] += times * int(estimate)
    return Cost(
        flops=dict(flops),
        cycles=dict(cycles),
        traffic=traffic,
        collectives=_collectives(program, devices),
        kernels=dict(kernels),
        loops=sorted(program.loops.values()),
    )


def _network(instruction: Instruction) -> str:
    """The network that an instruction comes from; "rest": the loss and the optimizer."""
    operation = instruction.attribute(r'op_name="([^"]*)"')
    return next((network for network, name in _NETWORKS.items() if name in operation), "rest")


def _collectives(program: Program, devices: int) -> list[Collective]:
    """The collectives of a step, added up by kind and group."""
    totals: dict[tuple[str, int], Collective] = {}
    channels = set()  # a collective in several instructions (start, fused, done) has one channel
    for name in program.times:
        for instruction in program.computations[name].values():
            if instruction.op.removesuffix("-start") not in _COLLECTIVES:
                continue
            channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
            if channel in channels:
                continue
            channels.add(channel)
            collective = _collective(program, name, instruction, devices)
            key = collective.kind, collective.group
            totals[key] = totals[key] + collective if key in totals else collective
    return [totals[key] for key in sorted(totals)]


def _collective(program: Program, name: str, instruction: Instruction, devices: int) -> Collective:
    """One collective of computation `name`, as often as it runs in a step."""
    computation, context, times = program.computations[name], program.context[name], program.times[name]
    kind, is_start = instruction.op.removesuffix("-start"), instruction.op.endswith("-start")
    inputs = sum(computation[operand].bytes for operand in instruction.operands if operand in computation)
    payload = instruction.bytes
    if kind == "reduce-scatter" or (is_start and kind != "all-gather"):
        payload = inputs
    elif is_start:  # its result holds input and output
        payload -= inputs
    sliced = any(other.op == "dynamic-slice" for other in computation.values())
    if kind == "all-reduce" and context == "fused" and sliced:
        kind = "reduce-scatter"  # how TPUs fuse it
    group = max(_group(instruction, devices), 1)
    # Of its payload, a device sends so much on a ring.
    share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1}.get(kind, (group - 1) / group)
    sent = times * payload * share
    exposed = sent if context == "plain" and not is_start else 0
    return Collective(kind, group, 1, times, times * payload, sent, exposed)


def _group(instruction: Instruction, devices: int) -> int:
    """Devices that take part together. Forms: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'b'}, none."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", instruction.attributes):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(size or sizes[axis]) for axis, size in axes)
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.attributes):
        return len(match[1].split(","))
    return devices


def _flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a dot, a convolution, or a library call that does one; 0 of everything else."""
    target = instruction.attribute(_TARGET) if instruction.op == "custom-call" else ""
    if instruction.op == "convolution" or target.startswith("__cudnn$conv"):
        lhs, rhs = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
        return _convolution(instruction, lhs, rhs)
    if instruction.op == "dot" or target.startswith("__cublas"):
        axes = instruction.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([^\]}]*)[\]}]')
        lhs = computation[instruction.operands[0]].shapes[0].sizes
        contracted = math.prod(lhs[int(axis.strip('" '))] for axis in axes.split(",") if axis)
        return 2 * math.prod(instruction.shapes[0].sizes) * contracted
    return 0


def _convolution(instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> float:
    """FLOPs of a convolution, which is also how TPUs write matrix products, without padding and holes.

    `lhs`, `rhs`: sizes of its inputs and of its kernel.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} of the program has no dim_labels")
    inputs, kernel, outputs = labels.groups()
    result = instruction.shapes[0].sizes
    window = dict(item.split("=") for item in instruction.attribute(r"window=\{([^}]*)\}").split())
    total = 2.0 * result[outputs.index("b")] * result[outputs.index("f")] * rhs[kernel.index("i")]
    for axis in filter(str.isdigit, outputs):
        options = {key: value.split("x")[int(axis)] for key, value in window.items()}
        x = np.arange(result[outputs.index(axis)])[:, None] * int(options.get("stride", 1))
        x = x + np.arange(rhs[kernel.index(axis)]) * int(options.get("rhs_dilate", 1))
        x = x - int(options.get("pad", "0_0").split("_")[0])
        dilate = int(options.get("lhs_dilate", 1))
        inside = (x >= 0) & (x % dilate == 0) & (x // dilate < lhs[inputs.index(axis)])
        total *= np.count_nonzero(inside)
    return float(total) / int(instruction.attribute(r"batch_group_count=(\d+)") or 1)


def instruction_traffic(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Bytes of main memory that an instruction of `computation` reads and writes."""
    if instruction.op in _NO_TRAFFIC or instruction.op.endswith("-done"):
        return 0
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.op == "dynamic-update-slice":
        return 2 * _main_memory_bytes(operands[1])
    if instruction.op in ("dynamic-slice", "slice", "gather"):  # of what is read, as much as comes out
        from_main = operands and _main_memory_bytes(operands[0])
        return _main_memory_bytes(instruction) + (instruction.bytes if from_main else 0)
    if instruction.op in ("copy-start", "slice-start"):
        moved = min((shape.bytes for shape in instruction.shapes if shape.sizes), default=0)
        return moved * sum(shape.space == 0 for shape in instruction.shapes[:2])
    if instruction.op == "fusion" and (fused := program.computations.get((instruction.called() or [""])[0])):
        in_main = [index for index, operand in enumerate(operands) if operand.shapes[0].space == 0]
        return sum(_read_bytes(fused, index, program) for index in in_main) + _written_bytes(
            instruction, fused
        )
    return _main_memory_bytes(instruction) + sum(map(_main_memory_bytes, operands))


def _main_memory_bytes(instruction: Instruction) -> float:
    """Bytes of an instruction's results that lie in main memory."""
    return sum(shape.bytes for shape in instruction.shapes if shape.space == 0)


def _read_bytes(fused: Computation, index: int, program: Program) -> float:
    """Bytes that a fusion reads of its operand number `index`.

    Of what it only slices or gathers from, that; of what it updates in place, nothing.
    """
    parameters = (instruction for instruction in fused.values() if instruction.op == "parameter")
    name = next((parameter.name for parameter in parameters if parameter.literal == str(index)), "")
    total = 0.0
    for use in fused.values():
        for position in (i for i, operand in enumerate(use.operands) if operand == name):
            if use.op in ("slice", "dynamic-slice", "gather") and position == 0:
                total += use.bytes
            elif use.op == "fusion" and use.called()[0] in program.computations:
                total += _read_bytes(program.computations[use.called()[0]], position, program)
            elif use.op != "dynamic-update-slice" or position:
                return fused[name].bytes
    return min(total, fused[name].bytes) if name else 0


def _written_bytes(instruction: Instruction, fused: Computation) -> float:
    """Bytes that a fusion writes; of an array that it updates in place, those of the update."""
    root = fused.get(fused.root)
    results = [fused.get(name) for name in root.operands] if root and root.op == "tuple" else [root]
    total = 0.0
    for shape, result in zip(instruction.shapes, results):
        if shape.space == 0:
            in_place = result is not None and result.op == "dynamic-update-slice"
            total += fused[result.operands[1]].bytes if result and in_place else shape.bytes
    return total
