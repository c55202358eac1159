"""Tensors in files, not read yet, and what is wrong with a conversion, collected until all of it is known."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np


class ConversionError(ValueError):
    """A source cannot be converted; the message lists every problem found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in a file, not read yet. `read()` gives the array: shape and dtype as said here.

    `read` raises ConversionError where the bytes are not what the file's own index says.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    read: Callable[[], np.ndarray]


def map_bytes(path: str | os.PathLike, first: int, count: int) -> np.ndarray:
    """uint8[count] of a file from byte `first` on: fewer where it ends, none where `first` is outside it.

    Mapped on its own: pages that were read stop counting as memory in use when the array is gone, which one
    map of a whole checkpoint would keep.
    """
    count = min(count, os.path.getsize(path) - first)
    if first < 0 or count <= 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r", first, (count,))


class ProblemCollector:
    """What keeps a source from being converted, and the tensors that are left out by rule.

    Readers add to it and go on, so that one error can list everything.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.ignored: dict[str, list[str]] = {}  # reason -> names
        self.notes: list[str] = []

    def add(self, kind: str, what: str) -> None:
        """`kind`: missing, surplus, shape, dtype, duplicate, file, config."""
        self.problems.append(f"{kind}: {what}")

    def ignore(self, reason: str, name: str) -> None:
        """Notes that the tensor `name` is left out, and why."""
        self.ignored.setdefault(reason, []).append(name)

    def note(self, what: str) -> None:
        """Notes what is no problem, and what a user should know."""
        self.notes.append(what)

    def check(self, source: str) -> None:
        """Raises ConversionError with all problems, if there are any."""
        if self.problems:
            lines = "\n  ".join([*self.problems, *(f"note: {note}" for note in self.notes)])
            number = f"{len(self.problems)} problem" + "s" * (len(self.problems) > 1)
            raise ConversionError(f"{source} cannot be converted, {number}:\n  {lines}")
