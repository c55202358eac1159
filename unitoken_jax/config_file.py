"""Python config files, `my.py[:argument]` or `stage2[:argument]`, and `--config.a.b=c` overrides -> Config.

Those in configs/ are shipped with the package, and go by their names. A config file defines
`get_config(argument=None)`, which returns what differs from the defaults: an ml_collections.ConfigDict, or a
nested dict. Overrides are ml_collections' own config flags. This is the only module that knows about that
library; everything else sees the frozen dataclasses of `config.py`.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from unitoken_jax.config import Config, from_dict, to_dict
from unitoken_jax.setting_ranges import SettingError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PREFIX = "--config."
_PACKAGE = pathlib.Path(__file__).resolve().parent
# Installed, the folder is inside of the package (see setup.py); in a checkout it is beside the package.
SHIPPED = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Reads the config file `path`, or the shipped one of that name, and applies `overrides`.

    After a colon comes the argument of its get_config: "my.py:argument", "stage2:unitoken_34b". A file counts
    before a shipped config of the same name.

    An override is "--config.train.steps=100", read as the type of the key it sets: a string needs no quotes,
    a tuple is a Python literal. Raises FileNotFoundError, or ValueError naming the file or the override, and
    the key (with the nearest known one).
    """
    file, argument = _find(str(path))
    values = _plain(_run(file, argument))
    if not isinstance(values, dict):
        raise ValueError(
            f"{file}: get_config returned {type(values).__name__}; expected a dict or ConfigDict"
        )
    # Checked before the overrides are applied, so that an error names where it comes from.
    try:
        config = from_dict(Config, values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    try:
        return with_overrides(config, overrides)
    except SettingError as error:
        raise ValueError(f"{file} with {' '.join(overrides)}: {error}") from error


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with the values of `overrides`, each "--config.a.b=value". Errors as `load_config`'s."""
    if not overrides:
        return config
    flexible = _config_dict(config)
    for override in overrides:
        _apply(flexible, override)
    return from_dict(Config, flexible.to_dict())


def is_override(argument: str) -> bool:
    """Whether a command-line argument is of the form --config.a.b=value."""
    return argument.startswith(_PREFIX)


def format_config(config: Config) -> str:
    """The text of a config file, Python source, that states every setting of `config`."""
    return f"def get_config():\n    return {_source(to_dict(config), ' ' * 4)}\n"


def _source(value: Any, indent: str) -> str:
    """`value` (of JSON's types) as Python source whose lines but the first begin with `indent`.

    Entries of dicts, and dicts in lists, have a line each.
    """
    inner = indent + " " * 4
    if isinstance(value, dict):
        entries = [f'"{key}": {_source(entry, inner)}' for key, entry in value.items()]
        opening, closing = "{}"
    elif isinstance(value, list):
        entries = [_source(entry, inner) for entry in value]
        opening, closing = "[]"
        if not any(isinstance(entry, dict) for entry in value):
            return f"[{', '.join(entries)}]"
    elif isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    else:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    lines = [f"{inner}{entry},\n" for entry in entries]
    return f"{opening}\n{''.join(lines)}{indent}{closing}"


def _find(path: str) -> tuple[pathlib.Path, str]:
    """The file and the argument that `path` means: its longest beginning, up to a colon, that is a file or a
    shipped config's name, and the rest."""
    shipped = {file.stem: file for file in SHIPPED.glob("*.py")}
    for end in reversed([match.start() for match in re.finditer(r":|\Z", path)]):
        for file in (pathlib.Path(path[:end]), shipped.get(path[:end])):
            if file and file.is_file():
                return file, path[end + 1 :]
    name = re.sub(r":[^/]*\Z", "", path)
    raise FileNotFoundError(f"config file {name} does not exist, and no shipped config {_nearest(name)}")


def _nearest(name: str) -> str:
    """The end of a message about config `name`: what the shipped ones are called, the nearest first."""
    names = sorted(file.stem for file in SHIPPED.glob("*.py"))
    names.sort(key=lambda shipped: -difflib.SequenceMatcher(None, shipped, pathlib.Path(name).stem).ratio())
    return f"is called so; there are {', '.join(names)}"


def _run(file: pathlib.Path, argument: str) -> Any:
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
        mistyped = isinstance(error, ModuleNotFoundError) and error.name == argument
        hint = f"; no shipped config {_nearest(argument)}" if mistyped else ""
        raise ValueError(f"{file}: {kind}{error}{hint}") from error


@contextlib.contextmanager
def _siblings(folder: pathlib.Path) -> Iterator[None]:
    """Lets a config import its neighbours and the shipped configs by name, and forgets them afterwards: other
    folders have the same names."""
    before, folders = set(sys.modules), (folder, SHIPPED)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        for path in folders:
            sys.path.remove(str(path))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and pathlib.Path(file).parent in folders:
                del sys.modules[name]


def _config_dict(config: Any) -> "ConfigDict":
    """A config dataclass as a ConfigDict that knows the type of every key.

    A key that may be None has no type of its own there: any literal is taken, and `from_dict` checks it.
    """
    from ml_collections import ConfigDict, config_dict  # here, as every `unitoken --help` imports this file

    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = _config_dict(value)
        elif field.default is None:
            values[field.name] = config_dict.FieldReference(value, field_type=object)
        else:
            values[field.name] = value
    return ConfigDict(values)


def _apply(config: "ConfigDict", override: str) -> None:
    """Sets what "--config.a.b=value" says in `config`, by a config flag of ml_collections."""
    from absl import flags
    from ml_collections import config_flags

    key, equals, text = override.removeprefix(_PREFIX).partition("=")
    if not is_override(override) or not equals or not key:
        raise ValueError(
            f"{override}: expected --config.section.key=value, for example --config.train.steps=100"
        )
    arguments = [sys.argv[0], override]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
        _explain(key, text, override)
        raise ValueError(f"{override}: {error}") from error


def _explain(key: str, text: str, override: str) -> None:
    """Raises ValueError with what `from_dict` says of a refused override: it names the whole dotted key."""
    values: Any = text
    for name in reversed(key.split(".")):
        values = {name: values}
    try:
        from_dict(Config, values)
    except ValueError as error:
        raise ValueError(f"{override}: {error}") from error


def _plain(values: Any) -> Any:
    """ConfigDicts, and FieldReferences inside them, as nested plain dicts."""
    if hasattr(values, "to_dict"):
        return values.to_dict()
    if dataclasses.is_dataclass(values):
        return to_dict(values)
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    return values
