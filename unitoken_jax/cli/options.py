"""What several verbs share: their common options, how an option's text is read, and which model is meant."""

import argparse
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from unitoken_jax.pretrained import DEFAULT_MODEL, QUICKSTART_MODEL, default_model
from unitoken_jax.setting_ranges import MAX_SEED

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken

QUICKSTART_DIR = os.path.dirname(QUICKSTART_MODEL)


class RunVerb(Protocol):
    """Does what a verb's parsed arguments ask for; its result is the exit code, None meaning 0."""

    def __call__(self, arguments: argparse.Namespace, /) -> int | None: ...


class AddVerb(Protocol):
    """Adds a verb to the command line, with the commands that end its --help as `examples`, and returns its
    parser, for the caller to add options to."""

    def __call__(self, name: str, run: RunVerb, help: str, *examples: str) -> argparse.ArgumentParser: ...


def add_parser(
    parsers: "argparse._SubParsersAction", name: str, help: str, *examples: str
) -> argparse.ArgumentParser:
    """Adds the parser of a verb, or of a word after one, to `parsers`; its --help ends with `examples`."""
    return parsers.add_parser(
        name,
        help=help,
        description=help,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """`--model MODEL`; `model_directory` reads it."""
    parser.add_argument("--model", metavar="MODEL", help=f"model directory (default: {DEFAULT_MODEL})")


def model_directory(arguments: argparse.Namespace) -> str:
    """The model directory that `--model` names, else `default_model`. FileNotFoundError without either."""
    return default_model() if arguments.model is None else arguments.model


def add_adapted_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model MODEL` and `--adapter DIR`, of verbs that run a model; `outline_model` and `load_model` read
    them."""
    add_model_option(parser)
    add_adapter_option(parser)


def add_adapter_option(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--adapter DIR`."""
    parser.add_argument(
        "--adapter",
        required=required,
        metavar="DIR",
        help="adapter folder; without --model, of its own base where that still is",
    )


def outline_model(arguments: argparse.Namespace) -> "UniToken":
    """The model that `--model` and `--adapter` mean, without its weights (`UniToken.outline`)."""
    from unitoken_jax.unitoken import UniToken

    return UniToken.outline(arguments.model, arguments.adapter)


def load_model(arguments: argparse.Namespace, **settings: Any) -> "UniToken":
    """The model that `--model` and `--adapter` mean; `settings` as of `UniToken.load`."""
    from unitoken_jax.unitoken import UniToken

    return UniToken.load(arguments.model, adapter=arguments.adapter, **settings)


def add_save_tokens_option(parser: argparse.ArgumentParser) -> None:
    """`--save-tokens FILE`, of verbs that generate."""
    parser.add_argument("--save-tokens", metavar="FILE.json", help="also write the token ids, as JSON")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """`--timing` and `--quantize`, of verbs that decode."""
    parser.add_argument(
        "--timing", action="store_true", help="also say how many seconds compiling, prompt and tokens took"
    )
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="hold the decoder in so many bits (default: as stored)"
    )


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from `minimum` to `maximum` (None: of any size)."""
    expected = f"a whole number from {minimum}" + (f" to {maximum}" if maximum else "")

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            raise argparse.ArgumentTypeError(f"{shorten(text)!r}; expected {expected}")
        return number

    return read


def real_number(minimum: float, above: bool = False) -> Callable[[str], float]:
    """A reader of finite numbers from `minimum` on, or `above` it."""
    expected = f"a number {'above' if above else 'from'} {minimum:g}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= minimum and (number > minimum or not above)):
            raise argparse.ArgumentTypeError(f"{shorten(text)!r}; expected {expected}")
        return number

    return read


def shorten(text: str, length: int = 60) -> str:
    """`text` for a message: no more than `length` characters of it."""
    return text if len(text) <= length else text[: length - 3] + "..."


count, positive = whole_number(1), real_number(0, above=True)
seed = whole_number(0, MAX_SEED)


def image_size(text: str) -> tuple[int, int]:
    """Reads "WxH" in pixels; (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and _is_pixels(width) and _is_pixels(height)):
        raise argparse.ArgumentTypeError(
            f"{shorten(text)!r}; expected WIDTHxHEIGHT in pixels, for example 512x512"
        )
    return int(height), int(width)


def side_or_image_size(text: str) -> int | tuple[int, int]:
    """Reads the side of a square, "512", or "WxH"; int or (height, width)."""
    return int(text) if _is_pixels(text) else image_size(text)


def _is_pixels(text: str) -> bool:
    """Whether `text` is a number of pixels, in ASCII digits, that an image may have."""
    return text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0


def share(text: str) -> tuple[int, int]:
    """Reads "I/N", the I-th of N shares counted from 0; (I, N)."""
    index, slash, count = text.partition("/")
    digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in (index, count))
    if not (slash and digits and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{shorten(text)!r}; expected I/N with I from 0 to N - 1, for example 0/4"
        )
    return int(index), int(count)


def check_output(path: str, option: str) -> None:
    """Raises OSError, with the option's name, where nothing can be written at `path` or below it: checked
    before the work whose result it is to hold. Missing folders are no problem."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if existing != os.path.abspath(path) and not os.path.isdir(existing):
        raise NotADirectoryError(f"{option} {path}: {existing} is no folder")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{option} {path}: no permission to write in {existing}")


def check_output_file(path: str, option: str) -> None:
    """Raises OSError as `check_output`, and where `path` is a folder or its folder is missing."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{option} {path}: the folder {folder} does not exist")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{option} {path} is a folder; expected a file")
    check_output(path, option)
