"""`unitoken evaluate`: which of its four ways was meant, and options that have no place in it."""

import pathlib
from collections.abc import Callable

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.drawing.prompts import find_drawing_benchmark
from unitoken_jax.evaluate.understanding.run import run_benchmark, score_predictions

_QUESTIONS = ("template", "max_tokens")
_IMAGES = ("rewritten", "number", "seed", "guidance", "top_k", "temperature")


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
    if find_drawing_benchmark(name):
        from unitoken_jax.evaluate.drawing.run import draw_benchmark

        _refuse({option: given[option] for option in _QUESTIONS}, f"{name}, which is about images to draw")
        own = {option: given[option] for option in _IMAGES}
        return draw_benchmark(benchmark, model(), data, out, recipe=recipe, batch=batch, **own)
    _refuse({option: given[option] for option in _IMAGES}, f"{name}, which is about questions")
    own = {option: given[option] for option in _QUESTIONS}
    return run_benchmark(benchmark, model(), data, out, recipe=recipe, batch=batch, **own)


def _score(benchmark: str, predictions: str, out: str, data: str | None) -> list[str]:
    found = find_drawing_benchmark(benchmark)
    if found is None:
        return score_predictions(benchmark, predictions, out, data)
    if found.name != "quickstart":
        raise ValueError(
            f"{found.name} is scored by its authors' own scorer, which needs detectors: run it on the "
            "folder, and give the file it writes as --scores FILE, with --out FOLDER"
        )
    from unitoken_jax.evaluate.drawing.scenes import score_scenes

    return score_scenes(predictions, out)


def _refuse(options: dict, where: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} says nothing about {where}")
