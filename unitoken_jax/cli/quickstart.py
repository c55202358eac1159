"""`unitoken quickstart`, `ablate` and `doctor`: the small model, and whether a machine is ready."""

import argparse

from unitoken_jax.cli.options import (
    QUICKSTART_DIR,
    AddVerb,
    count,
    positive,
    seed,
)


def add_verbs(add_verb: AddVerb) -> None:
    """Adds `quickstart` to the command line."""
    quickstart = add_verb(
        "quickstart",
        run_quickstart,
        "train a small model by the paper's stages I to III on a CPU, and score it",
        "unitoken quickstart",
        "unitoken quickstart --from-scratch --minutes 60 --out quickstart_60",
    )
    quickstart.add_argument(
        "--out",
        default=QUICKSTART_DIR,
        metavar="DIR",
        help=f"data set, runs, scores and model/ go there (default: {QUICKSTART_DIR})",
    )
    quickstart.add_argument(
        "--from-scratch",
        action="store_true",
        help="train all of it, not from the package's base model: tokenizers too",
    )
    quickstart.add_argument(
        "--minutes", type=positive, help="time budget on two cores (default: 5; 15 from scratch)"
    )
    quickstart.add_argument("--seed", type=seed, default=0, help="of data and training (default: 0)")


def add_ablate(add_verb: AddVerb) -> None:
    """Adds `ablate` to the command line."""
    ablate = add_verb(
        "ablate",
        run_ablate,
        "the paper's Tables 5 and 6 with the quickstart's model, several seeds",
        "unitoken ablate",
        "unitoken ablate --out ablation_short --scale 0.3 --seeds 2",
    )
    ablate.add_argument(
        "--out",
        default="ablation",
        metavar="DIR",
        help="a killed run goes on from there (default: ablation)",
    )
    ablate.add_argument(
        "--scale",
        type=positive,
        default=1.0,
        help="of data and steps; 1 takes about 3 hours (default: 1)",
    )
    ablate.add_argument(
        "--seeds", type=count, default=3, metavar="N", help="runs of every model (default: 3)"
    )
    ablate.add_argument(
        "--first-seed", type=seed, default=0, metavar="K", help="the first of those N (default: 0)"
    )


def add_doctor(add_verb: AddVerb) -> None:
    """Adds `doctor` to the command line."""
    add_verb(
        "doctor",
        run_doctor,
        "is this machine ready, and if not, what to do",
        "unitoken doctor",
        "JAX_PLATFORMS=cpu unitoken doctor",
    )


def run_quickstart(arguments: argparse.Namespace) -> None:
    """`unitoken quickstart`."""
    from unitoken_jax.quickstart.run import run

    run(arguments.out, arguments.minutes, arguments.seed, arguments.from_scratch)


def run_ablate(arguments: argparse.Namespace) -> None:
    """`unitoken ablate`: prints the findings at the end."""
    from unitoken_jax.ablate.run import run

    path = run(arguments.out, scale=arguments.scale, seeds=arguments.seeds, first_seed=arguments.first_seed)
    print(path.read_text(encoding="utf-8"))


def run_doctor(arguments: argparse.Namespace) -> int:
    """`unitoken doctor`: prints the findings; the exit code is 1 where something is wrong."""
    from unitoken_jax.cli.doctor import run

    return run()
