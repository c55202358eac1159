"""`unitoken <verb>`: parses, calls one library function, and turns our errors into one clear message.

Each group of verbs has a file of its own here, with its options and what they do side by side. Parsing
imports neither jax nor numpy, so that --help answers at once: a verb imports what it needs when it runs.
"""

import argparse
import sys

import unitoken_jax
from unitoken_jax.cli import compile_cache, evaluate, generate, inspection, quickstart, train, weights
from unitoken_jax.cli.options import RunVerb
from unitoken_jax.config_file import is_override
from unitoken_jax.storage.paths import expand_home

# In the order of `unitoken --help`.
VERB_GROUPS = (quickstart, generate, train, weights, inspection, evaluate)
# Arguments that name what a verb writes.
OUTPUT_OPTIONS = ("out", "sheet", "json", "save_tokens")
# Arguments that name what a verb reads.
INPUT_OPTIONS = (
    *("against", "checkpoint", "config", "conversation", "data", "image", "images", "model", "predictions"),
    *("recipe", "rewritten", "scores", "siglip", "vqgan", "what"),
)
PATH_OPTIONS = (*INPUT_OPTIONS, *OUTPUT_OPTIONS, "workdir")
# Options that were called otherwise once, and their names now.
RENAMED_OPTIONS = {"--pictures": "--images", "--picture-size": "--image-size"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code; 2: it cannot be done, and one message says why."""
    own_process = argv is None  # called from Python, jax's settings are the caller's
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    for argument in argv:
        if new_name := RENAMED_OPTIONS.get(option := argument.partition("=")[0]):
            parser.error(f"{option} is called {new_name} now")
    try:
        if own_process:
            compile_cache.enable()
        argv = evaluate.with_word(argv)
    except (ValueError, OSError) as error:
        if "--debug" in argv:
            raise
        print(f"unitoken {argv[0] if argv else ''}: {error}\n(--debug shows where)", file=sys.stderr)
        return 2
    arguments = parser.parse_args([argument for argument in argv if not is_override(argument)])
    overrides = [argument for argument in argv if is_override(argument)]
    if overrides and not hasattr(arguments, "overrides"):
        parser.error(f"{overrides[0]}: only `unitoken train` and `plan` take --config overrides")
    arguments.overrides, arguments.own_process = overrides, own_process
    try:
        _expand_homes(arguments)
        _refuse_urls(arguments)
        return arguments.run(arguments) or 0
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        # str(KeyError) and str(OSError) say less than they could, str(ValueError) all there is.
        print(f"unitoken {arguments.verb}: {error}\n(--debug shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"unitoken {arguments.verb}: stopped", file=sys.stderr)
        return 130


def _expand_homes(arguments: argparse.Namespace) -> None:
    """Makes a `~` that the shell has left (in quotes, after `=`) the home directory in every path."""
    for name in PATH_OPTIONS:
        if isinstance(value := getattr(arguments, name, None), list):
            setattr(arguments, name, [expand_home(path) for path in value])
        elif isinstance(value, str):  # `export --vqgan` is a flag
            setattr(arguments, name, expand_home(value))


def _refuse_urls(arguments: argparse.Namespace) -> None:
    """ValueError where a verb would make a folder "gs:" of a URL; `train` alone writes to one."""
    for name in OUTPUT_OPTIONS:
        if "://" in (value := getattr(arguments, name, None) or ""):
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is a URL; expected a path on this machine, as only "
                "`unitoken train` writes to a URL: copy what you get there (gcloud storage cp --recursive)"
            )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, without --config overrides, which `main` takes out first."""
    parser = argparse.ArgumentParser("unitoken", description="One decoder that reads and draws images.")
    parser.add_argument("--version", action="version", version=f"unitoken {unitoken_jax.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add_verb(name: str, run: RunVerb, help: str) -> argparse.ArgumentParser:
        verb_parser = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        verb_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb_parser.set_defaults(run=run)
        return verb_parser

    for group in VERB_GROUPS:
        group.add_verbs(add_verb)
    return parser
