"""`unitoken evaluate`: which of its four ways was meant, and options that have no place in it."""

import argparse
import pathlib
from collections.abc import Callable

from unitoken_jax.cli.options import AddVerb, add_model_option, model_directory

_QUESTIONS = ("template", "max_tokens")
_IMAGES = ("rewritten", "number", "seed", "guidance", "top_k", "temperature")


def add_verbs(add_verb: AddVerb) -> None:
    """Adds this file's verb to the command line."""
    evaluate = add_verb("evaluate", run_evaluate, "the paper's benchmarks: predictions, scores, a report")
    add_model_option(evaluate)
    evaluate.add_argument(
        "--benchmark", metavar="NAME", help="MMMU, MMBench_EN, ... (a wrong name lists them)"
    )
    evaluate.add_argument("--data", metavar="FILE", help="the benchmark's file, as VLMEvalKit has it (TSV)")
    evaluate.add_argument("--out", required=True, metavar="DIR", help="a killed run goes on from here")
    evaluate.add_argument("--predictions", metavar="FILE", help="score this file, without a model")
    evaluate.add_argument("--scores", metavar="FILE", help="take up what GenEval's or T2I's scorer wrote")
    evaluate.add_argument("--recipe", metavar="FILE", help="repeat the run that this recipe is of")
    evaluate.add_argument("--template", help="how questions are put: vlmevalkit (default) or direct")
    evaluate.add_argument("--max-tokens", type=int, help="longest answer (default: the model's)")
    evaluate.add_argument("--batch", type=int, help="how many at one time (default 16)")
    evaluate.add_argument("--rewritten", metavar="FILE", help="draw these prompts, line by line, instead")
    evaluate.add_argument("--number", type=int, help="images a prompt (default: the benchmark's)")
    evaluate.add_argument("--seed", type=int, help="of the images (default 0)")
    evaluate.add_argument("--guidance", type=float, help="default: 5.5 for GenEval, 5.0 for T2I-CompBench++")
    evaluate.add_argument("--top-k", type=int, help="of the images (default: the model's)")
    evaluate.add_argument("--temperature", type=float, help="of the images (default: the model's)")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """`unitoken evaluate`: prints the report."""
    names = ("benchmark", "data", "out", "predictions", "scores", "recipe", "batch", *_QUESTIONS, *_IMAGES)
    options = {name: getattr(arguments, name) for name in names}
    print("\n".join(evaluate(lambda: model_directory(arguments), **options)))


def evaluate(
    model: Callable[[], str],
    *,
    out: str,
    benchmark: str | None,
    data: str | None,
    predictions: str | None,
    recipe: str | None,
    scores: str | None,
    batch: int | None,
    **given,
) -> list[str]:
    """Runs or scores a benchmark; lines for the user. `model()`: the model directory, where one is needed.

    Raises ValueError for options that say nothing together, and as the functions it calls.
    """
    from unitoken_jax.evaluate import recipe as recipes
    from unitoken_jax.evaluate.registry import find_benchmark
    from unitoken_jax.evaluate.understanding.run import run_benchmark

    if batch is not None and batch < 1:
        raise ValueError(f"--batch is {batch}; expected at least 1")
    if pathlib.Path(out).is_file():
        raise ValueError(f"--out {out} is a file; expected a folder")
    if scores:
        from unitoken_jax.evaluate.drawing.scorers import import_scores

        other = {"data": data, "predictions": predictions, "recipe": recipe, "batch": batch}
        _refuse(given | other, "--scores, which only takes up what a scorer wrote")
        return import_scores(scores, out, benchmark)
    if predictions:
        if not benchmark:
            raise ValueError("--predictions needs --benchmark NAME, whose rules it is scored by")
        _refuse(given | {"recipe": recipe, "batch": batch}, "--predictions, which only scores")
        return _score(benchmark, predictions, out, data)
    if not benchmark and not recipe:
        raise ValueError("which benchmark? --benchmark NAME, or --recipe FILE to repeat a run")
    if not data:
        raise ValueError("--data FILE is needed: the benchmark's file (or --predictions FILE to score)")
    name = benchmark or recipes.load(recipe)["benchmark"]
    if find_benchmark(name).verb == "draw":
        from unitoken_jax.evaluate.drawing.run import draw_benchmark

        _refuse({option: given[option] for option in _QUESTIONS}, f"{name}, which is about images to draw")
        own = {option: given[option] for option in _IMAGES}
        return draw_benchmark(benchmark, model(), data, out, recipe=recipe, batch=batch, **own)
    _refuse({option: given[option] for option in _IMAGES}, f"{name}, which is about questions")
    own = {option: given[option] for option in _QUESTIONS}
    return run_benchmark(benchmark, model(), data, out, recipe=recipe, batch=batch, **own)


def _score(benchmark: str, predictions: str, out: str, data: str | None) -> list[str]:
    from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark
    from unitoken_jax.evaluate.registry import find_benchmark

    scored = find_benchmark(benchmark)
    if isinstance(scored, DrawingBenchmark):
        from unitoken_jax.evaluate.drawing.scorers import score_images

        return score_images(scored, predictions, out)
    from unitoken_jax.evaluate.understanding.run import score_predictions

    return score_predictions(benchmark, predictions, out, data)


def _refuse(options: dict, where: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} says nothing about {where}")
