"""`unitoken evaluate run | draw | score | import`: the paper's benchmarks, a word for each thing to do.

`unitoken evaluate --benchmark ...` without a word is a spelling of the one that its options mean: `import`
with --scores, `score` with --predictions, else `run` or `draw`, as the benchmark has it.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence

from unitoken_jax.cli.options import (
    AddVerb,
    add_adapted_model_options,
    add_parser,
    count,
    positive,
    real_number,
    seed,
)

WORDS = ("run", "draw", "score", "import")


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verb to the command line, with a parser for each of its words."""
    evaluate = add_verb(
        "evaluate",
        run_evaluate,
        "the paper's benchmarks: predictions, scores, a report",
        "unitoken evaluate run --benchmark Scenes --out scenes",
        "unitoken evaluate run --benchmark MMMU --data MMMU_DEV_VAL.tsv --out results",
    )
    words = evaluate.add_subparsers(dest="word", required=True, metavar="|".join(WORDS))

    def add_word(name: str, call: Callable, help: str, *examples: str) -> argparse.ArgumentParser:
        parser = add_parser(words, name, help, *examples)
        # SUPPRESS: a default here would undo a --debug before the word.
        parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        parser.add_argument("--out", required=True, metavar="DIR", help="a killed run goes on from here")
        parser.set_defaults(call=call)
        return parser

    run = add_word(
        "run",
        _run,
        "answer a benchmark's questions, and score the answers",
        "unitoken evaluate run --benchmark Scenes --out scenes",
        "unitoken evaluate run --data MMMU_DEV_VAL.tsv \\\n"
        "      --recipe results/MODEL_MMMU_DEV_VAL_recipe.json --out again",
    )
    _add_run_options(run, "the benchmark's file, as VLMEvalKit has it (TSV)")
    run.add_argument("--template", help="how questions are put, vlmevalkit or direct (default: vlmevalkit)")
    run.add_argument("--max-tokens", type=count, help="longest answer (default: the model's)")
    _add_rules_option(run)
    draw = add_word(
        "draw",
        _draw,
        "draw a benchmark's prompts, where its scorer looks for the images",
        "unitoken evaluate draw --benchmark DrawScenes --out drawn",
        "unitoken evaluate draw --benchmark T2I-CompBench++ --data color_val.txt \\\n"
        "      --number 2 --out t2i",
    )
    _add_run_options(draw, "the benchmark's prompts")
    draw.add_argument("--rewritten", metavar="FILE", help="draw these prompts, line by line, instead")
    draw.add_argument("--number", type=count, help="images a prompt (default: the benchmark's)")
    draw.add_argument("--seed", type=seed, help="of the images (default: 0)")
    draw.add_argument(
        "--guidance",
        type=positive,
        help="how closely prompts are followed (default: 5.5 for GenEval, 5.0 for T2I-CompBench++)",
    )
    draw.add_argument("--top-k", type=count, help="of the images (default: the model's)")
    draw.add_argument("--temperature", type=real_number(0), help="of the images (default: the model's)")
    score = add_word(
        "score",
        _score,
        "score predictions, or images of the small world; needs no model",
        "unitoken evaluate score --benchmark MMMU --out scored \\\n"
        "      --predictions results/MODEL_MMMU_DEV_VAL.tsv --rules vlmevalkit-2025-08",
        "unitoken evaluate score --benchmark DrawScenes --predictions drawn --out new",
    )
    score.add_argument("--benchmark", required=True, metavar="NAME", help="whose rules they are scored by")
    score.add_argument("--predictions", required=True, metavar="FILE", help="or the folder of the images")
    score.add_argument("--data", metavar="FILE", help="the right answers (default: of the predictions)")
    _add_rules_option(score)
    take = add_word(
        "import",
        _import,
        "take up what GenEval's or T2I-CompBench++'s scorer wrote",
        "unitoken evaluate import --scores results.jsonl --out geneval",
        "unitoken evaluate import --scores t2i/color/annotation_blip/vqa_result.json \\\n"
        "      --out t2i/color",
    )
    take.add_argument("--scores", required=True, metavar="FILE", help="what the scorer wrote")
    take.add_argument("--benchmark", metavar="NAME", help="refuse the folder if it is another one's")


def _add_rules_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rules",
        metavar="NAME",
        help="what an answer is taken for: vlmevalkit-2025-03 (default; the paper's time) or "
        "vlmevalkit-2025-08",
    )


def _add_run_options(parser: argparse.ArgumentParser, data_help: str) -> None:
    add_adapted_model_options(parser)
    parser.add_argument("--benchmark", metavar="NAME", help="Scenes, MMMU, ... (a wrong name lists them)")
    parser.add_argument("--recipe", metavar="FILE", help="repeat the run that this recipe is of")
    parser.add_argument("--data", metavar="FILE", help=f"{data_help} (Scenes, DrawScenes: in the package)")
    parser.add_argument("--batch", type=count, help="how many at one time (default: 16)")


def with_word(argv: Sequence[str]) -> list[str]:
    """`argv` with the word of `evaluate` that its options mean, where it has none.

    Raises ValueError for a benchmark or a recipe that cannot be read.
    """
    argv = list(argv)
    rest = [argument for argument in argv[1:] if argument != "--debug"]
    if argv[:1] != ["evaluate"] or not rest or rest[0] in (*WORDS, "-h", "--help"):
        return argv
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--scores", "--predictions", "--benchmark", "--recipe"):
        parser.add_argument(option, nargs="?")
    options, _ = parser.parse_known_args(argv[1:])
    return [argv[0], _meant_word(options), *argv[1:]]


def _meant_word(options: argparse.Namespace) -> str:
    """The word of `evaluate` that options given without one mean."""
    if options.scores:
        return "import"
    if options.predictions:
        return "score"
    from unitoken_jax.evaluate import recipe as recipes
    from unitoken_jax.evaluate.registry import find_benchmark
    from unitoken_jax.storage.paths import expand_home

    if not options.benchmark and not options.recipe:
        raise ValueError("which benchmark? --benchmark NAME, or --recipe FILE to repeat a run")
    return find_benchmark(options.benchmark or recipes.load(expand_home(options.recipe))["benchmark"]).verb


def run_evaluate(arguments: argparse.Namespace) -> None:
    """`unitoken evaluate WORD`: prints the report. Raises ValueError, as the functions it calls."""
    if pathlib.Path(arguments.out).is_file():
        raise ValueError(f"--out {arguments.out} is a file; expected a folder")
    print("\n".join(arguments.call(arguments)))


def _run_options(arguments: argparse.Namespace, *names: str) -> dict:
    """Adapter, recipe, batch and the options `names` as keyword arguments; ValueError without benchmark and
    recipe."""
    if not arguments.benchmark and not arguments.recipe:
        raise ValueError("which benchmark? --benchmark NAME, or --recipe FILE to repeat a run")
    return {name: getattr(arguments, name) for name in ("adapter", "recipe", "batch", *names)}


def _run(arguments: argparse.Namespace) -> list[str]:
    """`unitoken evaluate run`."""
    from unitoken_jax.evaluate.understanding.run import run_benchmark

    options = _run_options(arguments, "template", "rules", "max_tokens")
    return run_benchmark(arguments.benchmark, arguments.model, arguments.data, arguments.out, **options)


def _draw(arguments: argparse.Namespace) -> list[str]:
    """`unitoken evaluate draw`."""
    from unitoken_jax.evaluate.drawing.run import draw_benchmark

    names = ("rewritten", "number", "seed", "guidance", "top_k", "temperature")
    options = _run_options(arguments, *names)
    return draw_benchmark(arguments.benchmark, arguments.model, arguments.data, arguments.out, **options)


def _score(arguments: argparse.Namespace) -> list[str]:
    """`unitoken evaluate score`."""
    from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark
    from unitoken_jax.evaluate.registry import find_benchmark

    benchmark = find_benchmark(arguments.benchmark)
    if isinstance(benchmark, DrawingBenchmark):
        if arguments.rules:
            raise ValueError(
                f"--rules are for answers to questions; {benchmark.name} is scored by its images"
            )
        from unitoken_jax.evaluate.drawing.scorers import score_images

        return score_images(benchmark, arguments.predictions, arguments.out)
    from unitoken_jax.evaluate.understanding.run import score_predictions

    return score_predictions(
        arguments.benchmark, arguments.predictions, arguments.out, arguments.data, arguments.rules
    )


def _import(arguments: argparse.Namespace) -> list[str]:
    """`unitoken evaluate import`."""
    from unitoken_jax.evaluate.drawing.scorers import import_scores

    return import_scores(arguments.scores, arguments.out, arguments.benchmark)
