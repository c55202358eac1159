"""`unitoken <verb>`: parses, calls one library function, and turns our errors into one clear message.

Each group of verbs has a file of its own here, with its options and what they do side by side. Parsing
imports neither jax nor numpy, so that --help answers at once: a verb imports what it needs when it runs.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import tempfile
import traceback

import unitoken_jax
from unitoken_jax.cli import (
    compile_cache,
    evaluate,
    finetune,
    generate,
    inspection,
    quickstart,
    serve,
    train,
    weights,
)
from unitoken_jax.cli.options import RunVerb, add_parser, check_output, check_output_file
from unitoken_jax.config_file import is_override
from unitoken_jax.pretrained import QUICKSTART_MODEL
from unitoken_jax.sequence.errors import escape
from unitoken_jax.storage.paths import expand_home

# In the order of `unitoken --help`.
_GROUPS = (quickstart, generate, finetune, serve, train, weights, inspection, evaluate)
VERB_GROUPS = (
    *(group.add_verbs for group in _GROUPS),
    quickstart.add_ablate,
    quickstart.add_doctor,
)
DESCRIPTION = f"""One decoder that reads images and draws them: UniToken, in JAX.

MODEL is a model directory. Where it is left out, a verb takes {QUICKSTART_MODEL}
in this folder where there is one, else the small model inside the package.
`unitoken VERB --help` says what a verb takes, with two examples."""
EXAMPLES = """examples:
  unitoken generate --prompt "a red circle above a blue 7" --seed 1 \\
      --out drawn.png
  unitoken answer --image drawn.png --question "what is in the image?\""""
# Arguments that name what a verb writes.
OUTPUT_FILES = ("sheet", "json", "save_tokens")
OUTPUT_OPTIONS = ("out", *OUTPUT_FILES)
# Arguments that name what a verb reads.
INPUT_OPTIONS = (
    *("adapter", "against", "api_key_file", "checkpoint", "config", "conversation", "data", "image"),
    *("images", "model", "peft", "predictions", "recipe", "rewritten", "scores", "show_config", "siglip"),
    *("validation", "vqgan", "what"),
)
PATH_OPTIONS = (*INPUT_OPTIONS, *OUTPUT_OPTIONS, "workdir")
# Options that were called otherwise once, and their names now.
RENAMED_OPTIONS = {"--pictures": "--images", "--picture-size": "--image-size"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done. 1: done, and the answer is no (`plan`, `doctor`). 2: it cannot be done, and one message says why.
    75: training was told to stop, and goes on with the same command. 130: stopped by Ctrl-C. 141: whatever
    read the output has gone.
    """
    own_process = argv is None  # called from Python, jax's settings and the streams are the caller's
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if own_process:
            compile_cache.enable()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.reconfigure(errors="backslashreplace")
        return _run(argv, own_process)
    except KeyboardInterrupt:
        _complain(argv, "stopped")
        return 130
    except BrokenPipeError:
        if not own_process or not _reader_has_gone():
            raise
        _drop_output()
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in argv:
            raise
        if own_process and isinstance(error, OSError):
            _drop_output()
        # str(KeyError) and str(OSError) say less than they could, str(ValueError) all there is.
        _complain(argv, f"{error}\n(--debug shows where)")
        return 2
    except Exception as error:  # a fault of ours, or of the machine: its traceback is worth a report
        if "--debug" in argv or argv[:1] == ["train"]:  # a run's log is the place where it is looked for
            raise
        with tempfile.NamedTemporaryFile("w", prefix="unitoken-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        reason = f"{type(error).__name__}: {error}"
        _complain(argv, f"failed unexpectedly ({reason})\nPlease report the traceback in {file.name}")
        return 2


def _run(argv: list[str], own_process: bool) -> int:
    """Parses `argv` and does what it says; raises whatever that raises."""
    parser = build_parser()
    for argument in argv:
        if new_name := RENAMED_OPTIONS.get(option := argument.partition("=")[0]):
            parser.error(f"{option} is called {new_name} now")
    argv = evaluate.with_word(argv)
    arguments = parser.parse_args([argument for argument in argv if not is_override(argument)])
    overrides = [argument for argument in argv if is_override(argument)]
    if overrides and not hasattr(arguments, "overrides"):
        parser.error(f"{overrides[0]}: only `unitoken train`, `plan` and `finetune` take --config overrides")
    arguments.overrides, arguments.own_process = overrides, own_process
    _expand_homes(arguments)
    _check_outputs(arguments)
    code = arguments.run(arguments) or 0
    if sys.stdout is not None:
        sys.stdout.flush()  # a full disk, or a reader that has gone, is an error that has an exit code
    return code


def _complain(argv: list[str], message: str) -> None:
    """Prints `message` on the standard error, if there is still someone to read it."""
    with contextlib.suppress(OSError):
        print(escape(" ".join(["unitoken", *argv[:1]]) + f": {message}", keep="\n"), file=sys.stderr)


def _reader_has_gone() -> bool:
    """Whether the standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_output() -> None:
    """Lets go of output that cannot be written: Python would stumble over it at its end (exit code 120)."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _expand_homes(arguments: argparse.Namespace) -> None:
    """Makes a `~` that the shell has left (in quotes, after `=`) the home directory in every path."""
    for name in PATH_OPTIONS:
        if isinstance(value := getattr(arguments, name, None), list):
            setattr(arguments, name, [expand_home(path) for path in value])
        elif isinstance(value, str):  # `export --vqgan` is a flag
            setattr(arguments, name, expand_home(value))


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises ValueError or OSError where what a verb is to write cannot be written there.

    `train` alone writes to a URL; the others would make a folder "gs:" of one.
    """
    for name in OUTPUT_OPTIONS:
        option, value = f"--{name.replace('_', '-')}", getattr(arguments, name, None)
        if value is None:
            continue
        if "://" in value:
            raise ValueError(
                f"{option} {value} is a URL; expected a path on this machine, as only "
                "`unitoken train` writes to a URL: copy what you get there (gcloud storage cp --recursive)"
            )
        (check_output_file if name in OUTPUT_FILES else check_output)(value, option)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, without --config overrides, which `main` takes out first."""
    parser = argparse.ArgumentParser(
        "unitoken",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unitoken {unitoken_jax.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add_verb(name: str, run: RunVerb, help: str, *examples: str) -> argparse.ArgumentParser:
        verb_parser = add_parser(verbs, name, help, *examples)
        verb_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb_parser.set_defaults(run=run)
        return verb_parser

    for add_verbs in VERB_GROUPS:
        add_verbs(add_verb)
    return parser
