"""A text-to-image run to look at: its settings, its scores beside the paper's, images, and failures."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from PIL import Image

from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, DrawingBenchmark
from unitoken_jax.storage.atomic import write_text

FIRST, FAILURES, EACH = 24, 24, 4  # prompts, failed images, and images of one prompt that are shown
RESULTS = "results.json"


def write_gallery(
    root: pathlib.Path,
    out: pathlib.Path,
    benchmark: DrawingBenchmark,
    prompts: Sequence[BenchmarkPrompt],
    settings: Mapping,
) -> pathlib.Path:
    """Writes `root`/report.md and report.html (its path) of the images below `out`.

    Where results.json is in `root` (the quickstart's checker or `scorers` wrote it), scores and verdicts are
    shown; of T2I-CompBench++ also the scores of the other lists in `out`.
    """
    results = _read(root / RESULTS)
    title = f"{benchmark.name}: what was drawn"
    tables = [(["setting", "value"], list(settings.items()))]
    if benchmark.paper:
        tables.append(_beside_paper(benchmark, _scores(root, out, benchmark)))
    elif results:
        rows = [(name, f"{share:.3f}") for name, share in results["categories"].items()]
        tables.append((["category", "right"], [*rows, ("mean", f"{results['overall']:.3f}")]))
    notes = results.get("notes", [])
    text = [f"# {title}", *(page.markdown_table(*table) for table in tables), *notes]
    write_text(root / "report.md", "\n\n".join(text) + "\n")

    verdicts = {verdict["file"]: verdict for verdict in results.get("images", [])}
    body = [*(page.table(*table) for table in tables), *map(page.paragraph, notes)]
    body.append(page.heading("The first prompts"))
    shown = [(prompt, prompt.files[:EACH]) for prompt in prompts[:FIRST]]
    body.append(_cards(out, shown, verdicts))
    singly = [(prompt, (file,)) for prompt in prompts for file in prompt.files]
    failed = [each for each in singly if not verdicts.get(each[1][0], {}).get("ok", True)]
    if failed:
        body.append(page.heading(f"The first of {len(failed)} failures"))
        body.append(_cards(out, failed[:FAILURES], verdicts))
    scored = [each for each in singly if "score" in verdicts.get(each[1][0], {})]
    if scored:
        scored.sort(key=lambda each: verdicts[each[1][0]]["score"])
        body.append(page.heading("The lowest scores"))
        body.append(_cards(out, scored[:FAILURES], verdicts))
    path = root / "report.html"
    page.write_page(path, title, body)
    return path


def _read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _scores(root: pathlib.Path, out: pathlib.Path, benchmark: DrawingBenchmark) -> dict[str, float]:
    """{row of the paper's table: score here} of what has been scored."""
    if root == out:
        results = _read(root / RESULTS)
        return {"overall": results["overall"]} | results["categories"] if results else {}
    scores: dict[str, float] = {}
    for path in sorted(out.glob(f"*/{RESULTS}")):
        results = _read(path)
        if results.get("benchmark") == benchmark.name:
            scores |= results["categories"]
    return scores


def _beside_paper(benchmark: DrawingBenchmark, scores: Mapping[str, float]) -> tuple[list, list]:
    """Header and rows."""
    rows = []
    for name in dict.fromkeys((*benchmark.paper, *scores)):
        here = f"{scores[name]:.4f}" if name in scores else "by its authors' scorer"
        rows.append((name, here, *benchmark.paper.get(name, ("", ""))))
    return [benchmark.name, "here", "paper, stage II", "paper, stage III"], rows


def _cards(out: pathlib.Path, shown: Sequence[tuple], verdicts: Mapping[str, dict]) -> str:
    made = []
    for prompt, files in shown:
        images = []
        for file in files:
            with Image.open(out / file) as image:
                images.append(page.small_jpeg(image))
        known = [verdicts[file] for file in files if file in verdicts]
        lines = {"prompt": prompt.text}
        if reasons := [reason for verdict in known for reason in verdict.get("reasons", ())]:
            lines["not as asked"] = "; ".join(reasons)
        if scores := [f"{verdict['score']:.3f}" for verdict in known if "score" in verdict]:
            lines["score"] = ", ".join(scores)
        judged = [verdict["ok"] for verdict in known if "ok" in verdict]
        verdict = "" if not judged else "right" if all(judged) else "wrong"
        made.append(page.card(images, lines, verdict))
    return page.cards(made)
