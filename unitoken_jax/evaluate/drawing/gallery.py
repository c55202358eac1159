"""A text-to-image run to look at: its settings, its scores beside the paper's, images, and failures."""

import pathlib
from collections.abc import Mapping, Sequence

from PIL import Image

from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, PromptError
from unitoken_jax.evaluate.faults import named, read_json
from unitoken_jax.evaluate.markdown import markdown_table
from unitoken_jax.storage.atomic import write_text

MAX_PROMPTS = 24  # Prompts that are shown.
MAX_FAILURES = 24  # Failed images that are shown, and images of the lowest scores.
MAX_SAMPLES = 4  # Images of one prompt that are shown.
RESULTS = "results.json"


def write_gallery(
    run_folder: pathlib.Path,
    benchmark: DrawingBenchmark,
    prompts: Sequence[BenchmarkPrompt],
    settings: Mapping,
) -> pathlib.Path:
    """Writes report.md and report.html (its path) in `run_folder`, about the images of `prompts`.

    Where results.json is there (`scorers` wrote it), scores and verdicts are shown; of a benchmark that keeps
    several runs side by side also the other runs' scores.
    """
    image_root = benchmark.image_root(run_folder)
    results = _read(run_folder / RESULTS)
    title = f"{benchmark.name}: what was drawn"
    tables = [(["setting", "value"], list(settings.items()))]
    if benchmark.paper:
        tables.append(_beside_paper(benchmark, _scores(run_folder, benchmark)))
    elif results:
        rows = [(name, f"{share:.3f}") for name, share in results["categories"].items()]
        tables.append((["category", "right"], [*rows, ("mean", f"{results['overall']:.3f}")]))
    notes = results.get("notes", [])
    text = [f"# {title}", *(markdown_table(*table) for table in tables), *notes]
    write_text(run_folder / "report.md", "\n\n".join(text) + "\n")

    verdicts = {verdict["file"]: verdict for verdict in results.get("images", [])}
    body = [*(page.table(*table) for table in tables), *map(page.paragraph, notes)]
    body.append(page.heading("The first prompts"))
    shown = [(prompt, prompt.files[:MAX_SAMPLES]) for prompt in prompts[:MAX_PROMPTS]]
    body.append(_cards(image_root, shown, verdicts))
    singly = [(prompt, (file,)) for prompt in prompts for file in prompt.files]
    failed = [pair for pair in singly if not verdicts.get(pair[1][0], {}).get("ok", True)]
    if failed:
        body.append(page.heading(f"The first of {len(failed)} failures"))
        body.append(_cards(image_root, failed[:MAX_FAILURES], verdicts))
    scored = [pair for pair in singly if "score" in verdicts.get(pair[1][0], {})]
    if scored:
        scored.sort(key=lambda pair: verdicts[pair[1][0]]["score"])
        body.append(page.heading("The lowest scores"))
        body.append(_cards(image_root, scored[:MAX_FAILURES], verdicts))
    path = run_folder / "report.html"
    page.write_page(path, title, body)
    return path


def _read(path: pathlib.Path) -> dict:
    return read_json(path, {"overall": int | float, "categories": dict}) if path.exists() else {}


def _scores(run_folder: pathlib.Path, benchmark: DrawingBenchmark) -> dict[str, float]:
    """{row of the paper's table: score here} of what has been scored."""
    image_root = benchmark.image_root(run_folder)
    if run_folder == image_root:
        results = _read(run_folder / RESULTS)
        return {"overall": results["overall"]} | results["categories"] if results else {}
    scores: dict[str, float] = {}
    for path in sorted(image_root.glob(f"*/{RESULTS}")):
        results = _read(path)
        if results.get("benchmark") == benchmark.name:
            scores |= results["categories"]
    return scores


def _beside_paper(benchmark: DrawingBenchmark, scores: Mapping[str, float]) -> tuple[list, list]:
    """Header and rows of the table of scores, here and in the paper."""
    rows = []
    for name in dict.fromkeys((*benchmark.paper, *scores)):
        here = f"{scores[name]:.4f}" if name in scores else "by its authors' scorer"
        rows.append((name, here, *benchmark.paper.get(name, ("", ""))))
    return [benchmark.name, "here", "paper, stage II", "paper, stage III"], rows


def _cards(image_root: pathlib.Path, shown: Sequence[tuple], verdicts: Mapping[str, dict]) -> str:
    """HTML of a card for each (prompt, files) of `shown`, with the verdicts (by file) on its images."""
    cards = []
    for prompt, files in shown:
        images = []
        for file in files:
            path = image_root / file
            with named(PromptError, str(path), "not an image to show"), Image.open(path) as image:
                images.append(page.small_jpeg(image))
        file_verdicts = [verdicts[file] for file in files if file in verdicts]
        lines = {"prompt": prompt.text}
        if reasons := [reason for verdict in file_verdicts for reason in verdict.get("reasons", ())]:
            lines["not as asked"] = "; ".join(reasons)
        if scores := [f"{verdict['score']:.3f}" for verdict in file_verdicts if "score" in verdict]:
            lines["score"] = ", ".join(scores)
        judged = [verdict["ok"] for verdict in file_verdicts if "ok" in verdict]
        verdict = "" if not judged else "right" if all(judged) else "wrong"
        cards.append(page.card(images, lines, verdict))
    return page.cards(cards)
