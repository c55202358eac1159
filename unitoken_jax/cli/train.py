"""`unitoken train`, `plan` and `tokenize`: a config file's run, what it needs, and its images' codes."""

import argparse
import contextlib
import os
import signal
import sys
from types import FrameType

from unitoken_jax.cli.options import (
    AddVerb,
    add_model_option,
    count,
    model_directory,
    share,
)
from unitoken_jax.sequence.errors import escape
from unitoken_jax.train.preemption import RESUMABLE, Preempted


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verbs to the command line; `train` and `plan` take --config.a.b=c overrides."""
    train = add_verb(
        "train",
        run_train,
        "train as a config file says; --config.a.b=c changes one of its values",
        "unitoken train --config stage2 --workdir runs/stage2 \\\n      --config.train.init_from=MODEL",
        "unitoken train --show-config stage2:unitoken_34b > my_config.py",
    )
    source = train.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config",
        metavar="FILE|NAME",
        help="a config file, or a shipped one by name (stage2); stage2:unitoken_34b gives it an argument",
    )
    source.add_argument(
        "--show-config", metavar="FILE|NAME", help="print all settings, as a config file to start from"
    )
    train.add_argument(
        "--workdir", metavar="DIR", help="where the run lives, and resumes from: a folder, or gs://..."
    )
    train.add_argument(
        "--profile",
        type=count,
        metavar="STEPS",
        help="write a profiler trace of that many steps to WORKDIR/profile",
    )
    train.set_defaults(overrides=(), usage_error=train.error)

    plan = add_verb(
        "plan",
        run_plan,
        "does a training step fit, and how fast can it be; exit code 1 if it does not",
        "unitoken plan --config stage2 --topology v5p:4x4x4 --config.data.rows=64",
        "unitoken plan --config my_config.py --search --json plan.json",
    )
    plan.add_argument(
        "--config", required=True, metavar="FILE|NAME", help="as for train, with the same overrides"
    )
    plan.add_argument(
        "--topology",
        default="local",
        metavar="SLICE",
        help="v5e:16x16, v5p:4x4x4, ... (default: this machine's devices)",
    )
    plan.add_argument("--json", metavar="FILE", help="also write all of it as JSON")
    plan.add_argument(
        "--search", action="store_true", help="also try other meshes, remat policies and rows, and rank them"
    )
    plan.set_defaults(overrides=())

    tokenize = add_verb(
        "tokenize",
        run_tokenize,
        "write the VQ codes of a data set's images once, before training",
        "unitoken tokenize --model MODEL --data train.jsonl",
        "unitoken tokenize --data train.jsonl --images 'shards/*.tar' --share 0/4",
    )
    add_model_option(tokenize)
    tokenize.add_argument(
        "--data", required=True, metavar="DATA", help="JSON, JSONL, ArrayRecord, TFDS or images"
    )
    tokenize.add_argument(
        "--out", metavar="DIR", help="where the codes go (default: beside the data, where training looks)"
    )
    tokenize.add_argument(
        "--images", metavar="DIR", help="their folder, or tar shards 'x/*.tar' (default: the data's)"
    )
    tokenize.add_argument(
        "--share", type=share, metavar="I/N", help="do the I-th of N parts (from 0); the last one joins them"
    )
    tokenize.add_argument(
        "--skip", action="store_true", help="leave bad images out, and say which (default: stop at the first)"
    )


def run_train(arguments: argparse.Namespace) -> None:
    """`unitoken train`: shows a config, or runs a process of training, of as many as the environment says."""
    if arguments.show_config:
        _show_config(arguments)
        return
    if arguments.workdir is None:
        arguments.usage_error("the following arguments are required: --workdir")
    if arguments.own_process:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end_at_once)
    from unitoken_jax.cli import distributed
    from unitoken_jax.config_file import load_config
    from unitoken_jax.train.loop import train

    config = load_config(arguments.config, _overrides(arguments))
    if arguments.own_process:
        distributed.start()
    try:
        train(config, arguments.workdir)
    except Preempted:
        print(
            "unitoken train: stopped, and all is saved: the same command goes on from there", file=sys.stderr
        )
        raise
    except (Exception, KeyboardInterrupt):
        distributed.fail()
        raise


def _show_config(arguments: argparse.Namespace) -> None:
    """`unitoken train --show-config`: prints the config, overrides and all, as a config file."""
    from unitoken_jax.config_file import format_config, load_config

    overrides = _overrides(arguments)
    text = format_config(load_config(arguments.show_config, overrides))
    source = escape(" ".join([arguments.show_config, *overrides]))
    print(f"# Every setting of {source}; one that is left out has its default.")
    print(f"# unitoken_jax/config.py says what each of them means.\n\n\n{text}", end="")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The --config overrides, and what --profile means as one."""
    if arguments.profile is None:
        return [*arguments.overrides]
    return [*arguments.overrides, f"--config.train.profile_steps={arguments.profile}"]


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends a run that has made no step yet, which the same command begins, or goes on with.

    An exception would do, were it not lost where Python is just deleting an object.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"unitoken train: stopped before its first step\n")
    os._exit(RESUMABLE)


def run_plan(arguments: argparse.Namespace) -> int:
    """`unitoken plan`: prints the plan; the exit code is 1 where nothing fits."""
    if arguments.topology != "local":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else jax looks for the TPU that is only planned for
    from unitoken_jax.config_file import load_config
    from unitoken_jax.planning.search import run

    config = load_config(arguments.config, arguments.overrides)
    return run(config, arguments.topology, json_file=arguments.json, searching=arguments.search)


def run_tokenize(arguments: argparse.Namespace) -> None:
    """`unitoken tokenize`: prints where the codes are."""
    from unitoken_jax.generate.tokenize import tokenize

    options = {"images": arguments.images, "share": arguments.share}
    settings = {name: value for name, value in options.items() if value is not None}
    if arguments.skip:
        settings["on_error"] = lambda error: print(f"left out: {error}", file=sys.stderr)
    print(tokenize(model_directory(arguments), arguments.data, arguments.out, **settings))
