"""`unitoken finetune`: your own files, to an adapter or a model."""

import argparse
import sys

from unitoken_jax.cli.options import (
    AddVerb,
    add_model_option,
    count,
    model_directory,
    positive,
    real_number,
    seed,
    whole_number,
)
from unitoken_jax.train.preemption import Preempted


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verb to the command line; it takes --config.a.b=c overrides."""
    finetune = add_verb(
        "finetune",
        run_finetune,
        "teach a model from your own files, with LoRA or in full; says what it chooses",
        "unitoken finetune --data my.jsonl --out tuned",
        "unitoken finetune --data photos/ --captions draw --out tuned --dry-run",
    )
    add_model_option(finetune)
    finetune.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DATA",
        help="conversations, or a folder of images with captions.csv; may be given several times",
    )
    finetune.add_argument(
        "--out", required=True, metavar="DIR", help="the run, in a new folder; a stopped one goes on"
    )
    finetune.add_argument(
        "--captions",
        choices=("describe", "draw", "both"),
        default="both",
        help="what an image folder's captions teach (default: both)",
    )
    finetune.add_argument("--skip", action="store_true", help="report bad rows, and leave them out")
    finetune.add_argument(
        "--dry-run", action="store_true", help="say what would be done, with memory and time, and stop"
    )

    held_out = finetune.add_argument_group("held out, to measure on and to choose the best step by")
    held_out.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="DATA",
        help="other data, which may be given several times (default: a share of --data)",
    )
    held_out.add_argument(
        "--held-out",
        type=real_number(0),
        metavar="SHARE",
        help="of the rows of --data (default: 0.05); 0: none",
    )
    held_out.add_argument(
        "--sample-every",
        type=whole_number(0),
        metavar="STEPS",
        help="steps between held-out answers and images (default: a quarter of all); 0: never",
    )

    length = finetune.add_argument_group("how long and how fast (default: chosen from the data, and printed)")
    how_long = length.add_mutually_exclusive_group()
    how_long.add_argument("--steps", type=count, help="optimizer steps")
    how_long.add_argument("--epochs", type=positive, help="times that every example is seen")
    length.add_argument("--examples", type=count, metavar="N", help="examples in a step, about")
    length.add_argument("--learning-rate", type=positive, metavar="RATE", help="at its peak")
    length.add_argument(
        "--rehearsal",
        type=whole_number(0),
        metavar="N",
        help="images of what the model knows, learnt beside yours so that it forgets less; 0: none",
    )
    length.add_argument("--seed", type=seed, default=0, help="of order, pairs and rehearsal (default: 0)")

    trained = finetune.add_argument_group("what is trained (default: LoRA pairs)")
    trained.add_argument("--full", action="store_true", help="all parameters; leaves a model directory")
    trained.add_argument("--rank", type=count, default=16, help="of the pairs (default: 16)")
    trained.add_argument(
        "--alpha", type=positive, help="their product counts alpha / rank (default: twice the rank)"
    )
    trained.add_argument("--rslora", action="store_true", help="it counts alpha / sqrt(rank)")
    trained.add_argument(
        "--dropout", type=real_number(0), default=0.0, help="of the pairs' inputs (default: 0)"
    )
    trained.add_argument(
        "--lora-on",
        metavar="NETWORKS",
        help="which have pairs: decoder,head,siglip,adapter (default: decoder, and the head of a small "
        "vocabulary)",
    )
    trained.add_argument(
        "--train",
        default="",
        metavar="NETWORKS",
        help="trained whole beside the pairs: adapter,siglip,norms (default: none)",
    )
    trained.add_argument(
        "--frozen-dtype",
        choices=("stored", "bfloat16", "int8", "int4"),
        help="what the rest is held in (default: as stored, or int8 where memory is short)",
    )
    finetune.set_defaults(overrides=())


def run_finetune(arguments: argparse.Namespace) -> None:
    """`unitoken finetune`: prints what was chosen, and what came of it."""
    from unitoken_jax.cli import distributed
    from unitoken_jax.finetune import FinetuneOptions
    from unitoken_jax.finetune.run import finetune

    options = FinetuneOptions(
        data=tuple(arguments.data),
        model=model_directory(arguments),
        validation=tuple(arguments.validation),
        lora_on=_names(arguments.lora_on) if arguments.lora_on else None,
        train=_names(arguments.train),
        **{name: getattr(arguments, name) for name in _PLAIN},
    )
    if arguments.own_process:
        distributed.set_cpu_devices()
    try:
        finetune(options, arguments.out, overrides=arguments.overrides, dry_run=arguments.dry_run)
    except Preempted:
        print("unitoken finetune: stopped, and all is saved: the same command goes on", file=sys.stderr)
        raise


# Options whose values FinetuneOptions takes as they are.
_PLAIN = (
    *("captions", "skip", "full", "rank", "alpha", "rslora", "dropout", "frozen_dtype"),
    *("steps", "epochs", "learning_rate", "examples", "held_out", "sample_every", "rehearsal", "seed"),
)


def _names(text: str) -> tuple[str, ...]:
    """Reads "decoder,siglip"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
