"""A text-to-image run to look at: its settings, the paper's scores, the first pictures, and failures."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from PIL import Image

from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.picture_prompts import PictureBenchmark, PicturePrompt

FIRST, FAILURES, EACH = 24, 24, 4  # prompts, failed pictures, and pictures of one prompt that are shown


def write_gallery(
    root: pathlib.Path,
    out: pathlib.Path,
    benchmark: PictureBenchmark,
    prompts: Sequence[PicturePrompt],
    settings: Mapping,
) -> pathlib.Path:
    """Writes `root`/report.html (its path) of the pictures below `out`.

    Where results.json is there (the quickstart's checker wrote it), pictures carry its verdicts.
    """
    body = [page.table(["setting", "value"], settings.items())]
    if benchmark.paper:
        rows = [(name, "by its authors' scorer", *scores) for name, scores in benchmark.paper.items()]
        body.append(page.table([benchmark.name, "here", "paper, stage II", "paper, stage III"], rows))
    verdicts: dict[str, dict] = {}
    results = out / "results.json"
    if results.exists():
        found = json.loads(results.read_text(encoding="utf-8"))
        verdicts = {verdict["file"]: verdict for verdict in found["pictures"]}
        rows = [(name, f"{share:.3f}") for name, share in found["categories"].items()]
        body.append(page.table(["category", "right"], [*rows, ("mean", f"{found['overall']:.3f}")]))
    body.append(page.heading("The first prompts"))
    shown = [(prompt, prompt.files[:EACH]) for prompt in prompts[:FIRST]]
    body.append(_cards(out, shown, verdicts))
    failed = [
        (prompt, (file,))
        for prompt in prompts
        for file in prompt.files
        if not verdicts.get(file, {"ok": True})["ok"]
    ]
    if failed:
        body.append(page.heading(f"The first of {len(failed)} failures"))
        body.append(_cards(out, failed[:FAILURES], verdicts))
    path = root / "report.html"
    page.write_page(path, f"{benchmark.name}: what was drawn", body)
    return path


def _cards(out: pathlib.Path, shown: Sequence[tuple], verdicts: Mapping[str, dict]) -> str:
    made = []
    for prompt, files in shown:
        pictures = []
        for file in files:
            with Image.open(out / file) as picture:
                pictures.append(page.small_jpeg(picture))
        known = [verdicts[file] for file in files if file in verdicts]
        lines = {"prompt": prompt.text}
        if reasons := [reason for verdict in known for reason in verdict["reasons"]]:
            lines["not as asked"] = "; ".join(reasons)
        verdict = "" if not known else "right" if all(each["ok"] for each in known) else "wrong"
        made.append(page.card(pictures, lines, verdict))
    return page.cards(made)
