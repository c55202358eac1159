"""What a train step needs of a device's memory: by the shapes of its arguments, and as its compiler says."""

import dataclasses
import math
import pathlib
import re

import jax

from unitoken_jax.model import flops
from unitoken_jax.train.state import State

# Bytes of the units that XLA's reports and error messages count in, by their first letter.
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# A line of XLA's memory-usage-report: "  3.1MiB( 12%);  3.1MiB...; ...; ...; f32[...] name".
_REPORT_LINE = re.compile(r"\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([KMG]iB|B)[^;]*;[^;]*;[^;]*;\s*(.+)")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a step takes of one device's memory.

    Args:
        parameters: trained parameters, as an argument of the step.
        frozen: frozen parameters, as an argument.
        optimizer: the optimizer's state, as an argument.
        batch: the batch, as an argument.
        whole: as much of the arguments as is not split, as its sizes do not divide by the mesh.
        limit: what a program may use; None where nobody says.
        peak: the most that is used at one time; None where the compiler does not say, as for the next two.
        temporaries: what lives within the step.
        program: the program's code.
        largest: the largest temporaries, (bytes, shapes).
    """

    parameters: float = 0
    frozen: float = 0
    optimizer: float = 0
    batch: float = 0
    whole: float = 0
    limit: float | None = None
    peak: float | None = None
    temporaries: float | None = None
    program: float | None = None
    largest: tuple[tuple[float, str], ...] = ()

    @property
    def arguments(self) -> float:
        """All arguments of the step together."""
        return self.parameters + self.frozen + self.optimizer + self.batch

    @property
    def fits(self) -> bool:
        """Whether the peak is known and within the limit, where there is one."""
        return self.peak is not None and (self.limit is None or self.peak <= self.limit)

    def compiled(self, analysis, report_folder: str) -> "Memory":
        """A copy with what the compiler planned: its `memory_analysis()`, and its report in a folder."""
        return dataclasses.replace(
            self,
            peak=analysis.peak_memory_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            program=analysis.generated_code_size_in_bytes,
            largest=largest_temporaries(report_folder),
        )

    def refused(self, message: str) -> "Memory":
        """A copy with what the step would have needed, where the compiler's out-of-memory error says it."""
        if match := re.search(r"temporaries \(([\d.]+)([KMGT])\)", message):
            temporaries = _bytes(match[1], match[2])
            return dataclasses.replace(self, temporaries=temporaries, peak=self.arguments + temporaries)
        if match := re.search(r"Used ([\d.]+)([KMGT])", message):
            return dataclasses.replace(self, peak=_bytes(match[1], match[2]))
        return self


def argument_memory(state: State, batch: dict[str, jax.ShapeDtypeStruct], limit: float | None) -> Memory:
    """Memory of the step's arguments, ShapeDtypeStructs with shardings, on a device with `limit` bytes."""
    leaves = jax.tree.leaves(state)
    return Memory(
        parameters=_local_bytes(jax.tree.leaves(state.params)),
        frozen=_local_bytes(jax.tree.leaves(state.frozen)),
        optimizer=_local_bytes(jax.tree.leaves(state.opt_state)),
        batch=_local_bytes(jax.tree.leaves(batch)),
        whole=_local_bytes([leaf for leaf in leaves if leaf.sharding.is_fully_replicated]),
        limit=limit,
    )


def _local_bytes(leaves: list) -> float:
    """Bytes of placed arrays on one device."""
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    return float(sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shapes, leaves)))


def memory_limit(device: jax.Device, peaks: flops.Device | None, present: bool) -> float | None:
    """Bytes that a program may use of a device's memory; None where nobody says (a CPU).

    `present`: the device is this machine's and can be asked, not one that is only planned for.
    """
    if present and (stats := device.memory_stats()) and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return peaks.hbm if peaks else None


def largest_temporaries(report_folder: str, number: int = 8) -> tuple[tuple[float, str], ...]:
    """The largest temporaries as (bytes, shapes), from the compiler's report on its main memory."""
    temporaries = []
    for report in pathlib.Path(report_folder).glob("*memory-usage-report.txt"):
        spaces = report.read_text(encoding="utf-8").split("Memory Space:")
        main_memory = next((space for space in spaces if space.strip().startswith("default")), "")
        for line in main_memory.splitlines():
            if match := _REPORT_LINE.match(line):
                temporaries.append((_bytes(match[1], match[2]), match[3]))
    return tuple(sorted(temporaries, key=lambda temporary: -temporary[0])[:number])


def _bytes(number: str, unit: str) -> float:
    """`number` ("3.1") of a `unit` ("GiB" or "G") in bytes."""
    return float(number) * _UNITS[unit[0]]
