"""What several verbs share: their common options, how an option's text is read, and which model is meant."""

import argparse
import pathlib
from typing import Protocol

QUICKSTART_DIR = "quickstart"
DEFAULT_MODEL = f"{QUICKSTART_DIR}/model"  # what `unitoken quickstart` leaves behind


class RunVerb(Protocol):
    """Does what a verb's parsed arguments ask for; its result is the exit code, None meaning 0."""

    def __call__(self, arguments: argparse.Namespace, /) -> int | None: ...


class AddVerb(Protocol):
    """Adds a verb to the command line and returns its parser, for the caller to add options to."""

    def __call__(self, name: str, run: RunVerb, help: str) -> argparse.ArgumentParser: ...


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """`--model MODEL`; `model_directory` reads it."""
    parser.add_argument("--model", metavar="MODEL", help=f"model directory (default: {DEFAULT_MODEL})")


def model_directory(arguments: argparse.Namespace) -> str:
    """The model directory that `--model` names, else the quickstart's. FileNotFoundError without either."""
    if arguments.model is None and not pathlib.Path(DEFAULT_MODEL).is_dir():
        raise FileNotFoundError(
            f"no --model was given, and there is no {DEFAULT_MODEL} here: give a model directory, or run "
            "`unitoken quickstart` in this folder first"
        )
    return arguments.model or DEFAULT_MODEL


def add_save_tokens_option(parser: argparse.ArgumentParser) -> None:
    """`--save-tokens FILE`, of verbs that generate."""
    parser.add_argument("--save-tokens", metavar="FILE.json", help="also write the token ids")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """`--timing` and `--quantize`, of verbs that decode."""
    parser.add_argument("--timing", action="store_true", help="say how long the tokens took")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="the decoder in so many bits")


def image_size(text: str) -> tuple[int, int]:
    """Reads "WxH" in pixels; (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected WIDTHxHEIGHT in pixels, for example 512x512")
    return int(height), int(width)


def side_or_image_size(text: str) -> int | tuple[int, int]:
    """Reads the side of a square, "512", or "WxH"; int or (height, width)."""
    return int(text) if text.isdigit() else image_size(text)


def share(text: str) -> tuple[int, int]:
    """Reads "I/N", the I-th of N shares counted from 0; (I, N)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 0 to N - 1, for example 0/4")
    return int(index), int(count)
