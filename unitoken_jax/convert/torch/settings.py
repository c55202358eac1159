"""Tables of published settings files, read so that no key is passed over without a decision.

Every key is read, or has the value that is computed here, or is known not to change what is computed;
`SettingsTable.close` refuses any other by name.
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from unitoken_jax.convert.torch.readers import read_json
from unitoken_jax.convert.torch.report import ConversionError

REQUIRED = object()


class SettingsTable:
    """One table of a settings file. The readers raise ConversionError naming the file and the key."""

    def __init__(self, values: Mapping[str, Any], location: str):
        self.values, self.location = values, location
        self._known: set[str] = set()

    @classmethod
    def of_json(cls, path: str | os.PathLike) -> "SettingsTable":
        """The JSON object that the file `path` holds."""
        return cls(read_json(path), str(pathlib.Path(path)))

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = REQUIRED) -> Any:
        """The value of `key`, which must be of type `kind`."""
        self._known.add(key)
        value = self.values.get(key, default)
        if value is REQUIRED:
            raise ConversionError(f"{self.location} has no {key!r}; expected {_name(kind)}")
        if value is not default and (
            not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)
        ):
            raise ConversionError(f"{self.location}: {key!r} is {value!r}; expected {_name(kind)}")
        return value

    def count(self, key: str, default: Any = REQUIRED, maximum: int = 2**20, minimum: int = 1) -> int:
        """The whole number of `key`, `minimum` to `maximum`.

        A damaged size must not become a shape that takes all memory to describe.
        """
        value = self.get(key, int, default)
        if value is None or not minimum <= value <= maximum:
            raise ConversionError(f"{self.location}: {key!r} is {value}; expected {minimum} to {maximum}")
        return value

    def positive(self, key: str, default: Any = REQUIRED) -> float:
        """The positive number of `key`."""
        value = self.get(key, (int, float), default)
        if not 0 < value < 1e30:
            raise ConversionError(f"{self.location}: {key!r} is {value}; expected a positive number")
        return float(value)

    def numbers(self, key: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """The list of whole numbers of `key`."""
        numbers = self.get(key, (list, tuple), default)
        if not all(type(value) is int for value in numbers):
            raise ConversionError(f"{self.location}: {key!r} is {numbers!r}; expected whole numbers")
        return tuple(numbers)

    def table(self, key: str) -> "SettingsTable":
        """The table of `key`, empty where there is none."""
        values = self.get(key, dict, None)
        return SettingsTable(values or {}, f"{self.location} ({key})")

    def close(self, fixed: Mapping[str, tuple] = {}, harmless: Collection[str] = ()) -> None:
        """Refuses every key but those that were read, that are `harmless`, or that have a value of `fixed`.

        `fixed` has, by key, the values that stand for what is computed here. Another key that is null says
        nothing.
        """
        for key, value in self.values.items():
            if key in self._known or key in harmless or (key not in fixed and value is None):
                continue
            if key not in fixed:
                raise ConversionError(
                    f"{self.location}: {key!r} is {_shortened(value)}; it may change what is computed, and "
                    "only None is known here. If it changes nothing, remove it from the file"
                )
            if value not in fixed[key]:
                known = " or ".join(map(repr, fixed[key]))
                raise ConversionError(
                    f"{self.location}: {key!r} is {_shortened(value)}; only {known} is known here"
                )


def _name(kind: type | tuple[type, ...]) -> str:
    """ "int or float": a type, or several, for messages."""
    return " or ".join(member.__name__ for member in (kind if isinstance(kind, tuple) else (kind,)))


def _shortened(value: Any) -> str:
    """A value as a message has room for."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
