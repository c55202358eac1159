"""Scores of a run's images, taken up into its report: ours at once, the authors' from their files.

Needs no model and no jax.
"""

import os
import pathlib

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark, ScoresError
from unitoken_jax.evaluate.drawing.gallery import RESULTS, write_gallery
from unitoken_jax.evaluate.drawing.prompts import read_drawn
from unitoken_jax.evaluate.faults import encodable
from unitoken_jax.evaluate.registry import find_drawing
from unitoken_jax.storage.paths import expand_home


def score_images(
    benchmark: DrawingBenchmark, folder: str | os.PathLike, out: str | os.PathLike | None = None
) -> list[str]:
    """Judges the images in run folder `folder`; lines for the user.

    Writes results.json there, or in folder `out`. Raises ValueError where the benchmark needs another
    program's scores, and as `DrawingBenchmark.score`.
    """
    folder = pathlib.Path(expand_home(folder))
    results = benchmark.score(folder)
    out = folder if out is None else pathlib.Path(expand_home(out))
    out.mkdir(parents=True, exist_ok=True)
    recipes.write_json(out / RESULTS, results)
    parts = [f"  {name}: {value:.3f}" for name, value in results["categories"].items()]
    return [f"{benchmark.name} ({len(results['images'])} images): {results['overall']:.3f}", *parts]


def import_scores(
    scores: str | os.PathLike, out: str | os.PathLike, benchmark: str | None = None
) -> list[str]:
    """Takes file `scores` up into run folder `out` (that of recipe.json); lines for the user.

    Writes results.json and the report there. Raises FileNotFoundError where `out` is no run, ScoresError
    where `scores` is not about its images.
    """
    scores, run_folder = pathlib.Path(expand_home(scores)), pathlib.Path(expand_home(out))
    if not (run_folder / "recipe.json").exists():
        raise FileNotFoundError(
            f"{run_folder} holds no recipe.json: --out is the folder that was drawn into; for "
            "T2I-CompBench++ that of one list, for example t2i/color"
        )
    recipe = recipes.load(run_folder / "recipe.json")
    drawn = find_drawing(recipe["benchmark"])
    if benchmark is not None and find_drawing(benchmark) is not drawn:
        raise ScoresError(f"{run_folder} is a run of {recipe['benchmark']}, not of {benchmark}")
    results = drawn.score(run_folder, scores)
    source = recipes.checksum(scores) | {"file": encodable(scores.name)}
    recipes.write_json(run_folder / RESULTS, {"benchmark": drawn.name, "scores": source} | results)
    report = write_gallery(run_folder, drawn, read_drawn(run_folder), recipe["settings"])
    lines = [f"{drawn.name} ({len(results['images'])} images): {results['overall']:.4f}"]
    if drawn.image_root(run_folder) == run_folder:  # else the overall score is the one list's
        lines += [f"  {name}: {value:.4f}" for name, value in results["categories"].items()]
    return [*lines, *(f"  note: {note}" for note in results["notes"]), f"report: {report}"]
