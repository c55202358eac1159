"""Reads a compiled program (HLO text): what one device does in a step, loops counted as often as they run.

XLA's own `cost_analysis()` counts a loop's body once, so a scan over 32 layers counts as one. Here every
instruction counts times the trips of the loops around it.

    ENTRY %main (...) -> ... {
      %fusion.1 = bf16[512,2048]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kOutput, calls=%fused.1, ...
"""

import collections
import math
import pathlib
import re
from typing import NamedTuple

# Bytes of the dtypes whose size does not follow from the number in their name.
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
# "bf16[512,2048]{1,0:T(8,128)S(1)}": dtype, sizes, layout.
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
# The line before a computation's instructions, and an instruction's own.
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*")
_INSTRUCTION = re.compile(r"  (ROOT )?%?([\w.\-]+) = (.*)")
_NAMES = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """An array's dtype, sizes and memory space: 0 a device's main memory, 1 a TPU's VMEM, 5 the host's."""

    dtype: str
    sizes: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Bytes of the whole array, without padding."""
        return _dtype_bytes(self.dtype) * math.prod(self.sizes)


def _dtype_bytes(dtype: str) -> float:
    """Bytes of an element; ValueError for a dtype that is not known."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if dtype not in _BYTES and bits is None:
        raise ValueError(f"HLO has an array of dtype {dtype!r}, whose size is not known")
    return _BYTES[dtype] if dtype in _BYTES or bits is None else int(bits[1]) / 8


class Instruction(NamedTuple):
    """One line: `shapes` of its results, `operands` by name, the rest of the line as `attributes`.

    `literal` is all that stands between the parentheses: operands, a constant's value, a parameter's number.
    """

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, pattern: str) -> str:
        """What the one group of `pattern` matches in the attributes; empty where it matches nothing."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""

    def called(self) -> list[str]:
        """Names of the computations it runs, except a loop's."""
        named = re.findall(
            r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", self.attributes
        )
        listed = re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes)
        return named + [name for names in listed for name in _NAMES.findall(names)]

    @property
    def bytes(self) -> float:
        """Bytes of all its results."""
        return sum(shape.bytes for shape in self.shapes)


class Computation(dict[str, Instruction]):
    """Instructions by name, in order; `root` is the name of the one whose value is the computation's."""

    root: str = ""


class Program(NamedTuple):
    """`times`: how often each computation runs. `loops`: body -> trips, 0 where only the data tell.

    `context`: how a computation runs: its instructions one by one ("plain"), beside others ("async"), or as
    one kernel ("fused").
    """

    computations: dict[str, Computation]
    entry: str
    times: dict[str, float]
    loops: dict[str, float]
    context: dict[str, str]


def dump_options(folder: str) -> dict:
    """Compiler options that leave the program's text and memory report in `folder`.

    `as_text()` fails on programs with work on SparseCores, and has no such report.
    """
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def dumped_text(compiled, folder: str) -> str:
    """The text of a program compiled with `dump_options(folder)`."""
    dumped = list(pathlib.Path(folder).glob("*after_codegen.txt"))
    return dumped[0].read_text(encoding="utf-8") if dumped else compiled.as_text()


def parse(text: str, unknown_trips: float = 1, start: str = "") -> Program:
    """HLO text -> Program. Loops whose length is data run `unknown_trips` times.

    `start`: the computation whose runs count, once; default: the whole program's entry.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _joined(text):
        if current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[2], match[3])
            current[instruction.name] = instruction
            if match[1]:
                current.root = instruction.name
        elif match := _HEADER.fullmatch(line):
            current = computations[match[2]] = Computation()
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
    if not entry:
        raise ValueError("this text holds no HLO program: no ENTRY computation")
    program = Program(computations, entry, collections.defaultdict(float), {}, {})
    _run(program, start or entry, 1, unknown_trips, "plain")
    return program


def _joined(text: str) -> list[str]:
    """The lines of `text`; an instruction that metadata break over several becomes one again."""
    starts = ("  %", "  ROOT ", "%", "ENTRY ", "HloModule", "}")
    lines: list[str] = []
    for line in text.splitlines():
        plain = re.match(r"  [\w.\-]+ = ", line)  # newer XLA leaves out the %
        if lines and line.strip() and not plain and (not line.startswith(starts) or line.startswith("}}")):
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def _instruction(name: str, rest: str) -> Instruction:
    """Instruction `name`, whose line goes on with `rest`: "bf16[8]{0} add(%a, %b), metadata=..."."""
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    result_type, rest = rest[:cut], rest[cut:].lstrip()
    shapes = tuple(
        Shape(dtype, tuple(map(int, filter(None, sizes.split(",")))), _space(layout))
        for dtype, sizes, layout in _SHAPE.findall(result_type)
    )
    opening = rest.index("(")
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    return Instruction(
        name, rest[:opening], shapes, tuple(_NAMES.findall(literal)), literal, rest[closing + 1 :]
    )


def _space(layout: str) -> int:
    """The memory space in "{1,0:T(8,128)S(1)}"; main memory where none is named."""
    match = re.search(r"S\((\d+)\)", layout)
    return int(match[1]) if match else 0


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"HLO line without closing parenthesis: {text[:80]!r}")


# How an instruction runs the computation it calls (`Program.context`); "": as it runs itself.
_CALL_CONTEXTS = {"fusion": "fused", "async-start": "async", "call": "", "conditional": "", "custom-call": ""}


def _run(program: Program, name: str, times: float, unknown_trips: float, context: str) -> None:
    """Adds `times` runs of computation `name` and of all that it runs."""
    program.times[name] += times
    program.context[name] = context
    for instruction in program.computations[name].values():
        if instruction.op == "while":
            body = instruction.attribute(r"body=%?([\w.\-]+)")
            trips = program.loops[body] = _trips(program.computations, name, instruction)
            _run(program, body, times * (trips or unknown_trips), unknown_trips, context)
        elif instruction.op in _CALL_CONTEXTS:
            for called in instruction.called():
                if called in program.computations:
                    _run(program, called, times, unknown_trips, _CALL_CONTEXTS[instruction.op] or context)


def _trips(computations: dict[str, Computation], computation: str, loop: Instruction) -> float:
    """How often a counting loop runs, by its condition's constant, start and step; 0 where there is none."""
    if known_trips := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known_trips)
    condition = loop.attribute(r"condition=%?([\w.\-]+)")
    limits, todo = [], [condition]
    while todo:
        for instruction in computations.get(todo.pop(), {}).values():
            if instruction.op == "constant" and _counts(instruction):
                limits.append(int(instruction.literal))
            todo += instruction.called()
    counters = [
        int(instruction.attribute(r"index=(\d+)"))
        for instruction in computations[condition].values()
        if instruction.op == "get-tuple-element" and _counts(instruction)
    ]
    if not limits or not counters:
        return max(limits, default=0)
    start = _element(computations[computation], loop.operands[0], counters[-1])
    body = computations[loop.attribute(r"body=%?([\w.\-]+)")]
    step = _element(body, body.root, counters[-1]) or 1  # 2 where the compiler unrolled once
    return max(-(-(max(limits) - start) // step), 1)


def _element(computation: Computation, name: str, index: int) -> int:
    """The constant in element `index` of tuple `name`, or what is added to it; else 0."""
    instruction = computation.get(name)
    return (
        _constant(computation, instruction.operands[index])
        if instruction and instruction.op == "tuple"
        else 0
    )


def _counts(instruction: Instruction) -> bool:
    """Whether its value can be a loop's counter or limit."""
    return instruction.shapes[0].dtype in ("s32", "u32") and instruction.shapes[0].sizes == ()


def _constant(computation: Computation, name: str, depth: int = 0) -> int:
    """The value of a scalar that is a constant, or a copy of one; else 0 (peeled loops start at 1)."""
    instruction = computation.get(name)
    if instruction is None or depth > 4:
        return 0
    if instruction.op == "constant":
        return int(instruction.literal)
    if instruction.op in ("copy", "bitcast", "add"):
        return sum(_constant(computation, operand, depth + 1) for operand in instruction.operands)
    return 0
