"""Python config files: `configs/stage2.py[:argument]` with `--config.a.b=value` overrides -> Config.

A config file defines `get_config(argument=None)` returning what differs from the defaults: a nested dict,
or an ml_collections.ConfigDict. This is the only place that knows about the latter.
"""

import ast
import contextlib
import dataclasses
import pathlib
import runpy
import sys

from unitoken_jax.config import Config, from_dict, to_dict

_PREFIX = "--config."


def load_config(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads config file `path` ("file.py" or "file.py:argument") and applies `overrides`.

    An override is "--config.train.steps=100"; the value is a Python literal, or else a plain string.
    Raises FileNotFoundError, or ValueError naming the file and the key (with the nearest known one).
    """
    file, argument = _split(path)
    values = _plain(_run(file, argument))
    if not isinstance(values, dict):
        raise ValueError(
            f"{file}: get_config returned {type(values).__name__}; expected a dict or ConfigDict"
        )
    # Checked before the overrides are merged, so that an error names where it comes from.
    try:
        known = to_dict(from_dict(Config, values))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for override in overrides:
        _set(values, known, override)
    try:
        return from_dict(Config, values)
    except ValueError as error:
        raise ValueError(f"{file} with {' '.join(overrides)}: {error}") from error


def is_override(argument: str) -> bool:
    """Whether a command-line argument is of the form --config.a.b=value."""
    return argument.startswith(_PREFIX)


def _split(path: str) -> tuple[pathlib.Path, str | None]:
    name, colon, argument = str(path).rpartition(".py:")
    file = pathlib.Path(name + ".py" if colon else path)
    if not file.is_file():
        raise FileNotFoundError(f"config file {file} does not exist; the shipped ones are in configs/")
    return file, argument if colon else None


def _run(file: pathlib.Path, argument: str | None):
    """What the file's get_config returns."""
    try:
        with _siblings(file.parent.resolve()):
            get_config = runpy.run_path(str(file)).get("get_config")
            if get_config is None:
                raise ValueError(
                    "defines no get_config(argument=None) that returns what differs from the defaults"
                )
            return get_config(argument) if argument else get_config()
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a config's own code raises, said with the file's name
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{file}: {kind}{error}") from error


@contextlib.contextmanager
def _siblings(folder: pathlib.Path):
    """Lets a config import its neighbours by name, and forgets them: other folders have the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and pathlib.Path(file).parent == folder:
                del sys.modules[name]


def _set(values: dict, known: dict, override: str) -> None:
    """Puts "--config.a.b=value" into the nested `values`; `known` is the resolved config before it."""
    key, equals, text = override.removeprefix(_PREFIX).partition("=")
    if not is_override(override) or not equals or not key:
        raise ValueError(
            f"{override}: expected --config.section.key=value, for example --config.train.steps=100"
        )
    *sections, last = key.split(".")
    here = known
    for depth, section in enumerate(sections):
        values = values.setdefault(section, {})
        here = here.get(section) if isinstance(here, dict) else None
        if not isinstance(values, dict) or (here is not None and not isinstance(here, dict)):
            raise ValueError(f"{override}: {'.'.join(sections[: depth + 1])} is a value, not a section")
    if isinstance(here, dict) and isinstance(here.get(last), dict):
        raise ValueError(f"{override}: {key} is a section; set one of {', '.join(here[last])}")
    values[last] = _literal(text)


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # an unquoted string, such as bfloat16 or a path


def _plain(values):
    """ConfigDicts, and FieldReferences inside them, as nested plain dicts."""
    if hasattr(values, "to_dict"):
        return values.to_dict()
    if dataclasses.is_dataclass(values):
        return to_dict(values)
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    return values
