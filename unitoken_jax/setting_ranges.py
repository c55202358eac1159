"""Dataclasses of settings whose numbers lie in ranges, which their types say: `steps: Count = 1000`."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

MAX_SEED = 2**32 - 1  # jax's keys are made of 32 bits


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: from `low` (`above`: above it) to `high` (`below`: below it)."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def includes(self, value: float) -> bool:
        """Whether `value` may be; what is not a number may not."""
        high_enough = value > self.low if self.above else value >= self.low
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number above {self.low}" if self.above else f"{self.low} or more"
        return f"{self.low} to {'less than ' if self.below else ''}{self.high}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Layers = Annotated[int, Range(1, 1000)]  # A network of more would be traced for minutes before it fails.
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
Seed = Annotated[int, Range(0, MAX_SEED)]


class SettingError(ValueError):
    """A setting that cannot be: `key` is its name, `problem` what is wrong with its value."""

    def __init__(self, key: str, problem: str):
        super().__init__(f"config key {key} {problem}")
        self.key, self.problem = key, problem

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.problem)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A dataclass whose numbers lie in the ranges of their types, however it is made.

    Raises SettingError naming the field.
    """

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            for value, allowed in _ranged(hint, getattr(self, name)):
                if not allowed.includes(value):
                    raise SettingError(name, f"is {getattr(self, name)!r}; expected {allowed}")

    def _require_multiple(self, name: str, of: str) -> None:
        """Raises SettingError unless field `name` is a multiple of field `of`."""
        value, divisor = getattr(self, name), getattr(self, of)
        if value % divisor:
            raise SettingError(name, f"is {value}; expected a multiple of {of}, which is {divisor}")


def _ranged(hint: Any, value: Any) -> Iterator[tuple[Any, Range]]:
    """Each number in `value`, of type `hint`, that has a range, with it."""
    arguments = typing.get_args(hint)
    if value is None or not arguments:
        return
    if typing.get_origin(hint) is Annotated:
        yield value, arguments[1]
    elif isinstance(value, tuple):
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        for inner, item in zip(hints, value):
            yield from _ranged(inner, item)
    else:
        yield from _ranged(arguments[0], value)  # T | None


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises ValueError, which calls it `name`, where `seed` is no whole number from 0 to MAX_SEED."""
    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is {seed!r}; expected a whole number from 0 to {MAX_SEED}")
