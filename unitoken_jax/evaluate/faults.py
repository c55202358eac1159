"""One bad row is one bad row: whatever is wrong with what others wrote becomes an error that names it."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from unitoken_jax.sequence.errors import legible


@contextlib.contextmanager
def named(error_type: type[ValueError], source: str, problem: str = "") -> Iterator[None]:
    """Raises `error_type`, beginning with `source` and `problem`, in place of whatever the block raises.

    Libraries raise what they like on damaged input, so no classes are listed. The original error is the
    cause, which --debug shows. An `error_type` that names `source` already passes as it is.
    """
    try:
        yield
    except Exception as error:
        detail = _explained(error)
        if detail.startswith(source):
            raise (error if isinstance(error, error_type) else error_type(detail)) from error.__cause__
        detail = legible(detail)
        raise error_type(f"{source}: {problem} ({detail})" if problem else f"{source}: {detail}") from error


def _explained(error: Exception) -> str:
    """`error` as text: our own errors are sentences, others say more with their class."""
    if type(error).__module__.startswith("unitoken_jax.") or type(error) is ValueError:
        return str(error)
    return f"{type(error).__name__}: {error}"


def parse_json(text: str) -> Any:
    """The value of JSON `text`.

    Raises ValueError for whatever is wrong with it: also where it is nested too deep for Python, or holds a
    lone surrogate, half of a character, which no tokenizer and no file takes.
    """
    try:
        value = json.loads(text)
        check_encodable(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    return value


def check_encodable(text: str) -> None:
    """Raises ValueError where `text` holds a lone surrogate: it can be neither tokenized nor written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(
            f"{half} alone is half of a character (a surrogate): write all of it, or none"
        ) from None


def read_json(path: pathlib.Path, types: Mapping[str, Any]) -> dict:
    """The object in our own file `path`, whose values have the `types` by key.

    Raises FileNotFoundError, or ValueError naming the file where it is not what was written there.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        wrong = [
            key for key in types if not isinstance(value, dict) or not isinstance(value.get(key), types[key])
        ]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: absent, or of another type")
    except ValueError as error:
        raise ValueError(
            f"{path}: not what was written there ({error}): remove it, and repeat the command that wrote it"
        ) from None
    return value


def encodable(name: str) -> str:
    """The file name `name` as text that can be written: what is not UTF-8 in it is replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def undecodable_line(path: pathlib.Path) -> int:
    """The number, from 1, of the first line of file `path` that is not UTF-8; 0 where all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0
