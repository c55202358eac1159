"""The quickstart's images, judged by its built-in checker; needs no model and no jax."""

import json
import os
import pathlib

import numpy as np
from PIL import Image

from unitoken_jax.evaluate.drawing.prompts import PromptError
from unitoken_jax.evaluate.recipe import write_json
from unitoken_jax.scenes.checker import check, score_images
from unitoken_jax.scenes.prompts import Requirement


def score_scenes(folder: str | os.PathLike, out: str | os.PathLike | None = None) -> list[str]:
    """Judges GenEval-like `folder` of the quickstart's scenes; lines for the user.

    Writes results.json there, or in folder `out`. Raises PromptError naming the file where metadata
    or images are missing or of another size.
    """
    folder = pathlib.Path(folder)
    requirements, verdicts, rows = [], [], []
    for metadata in sorted(folder.glob("[0-9]*/metadata.jsonl")):
        try:
            requirement = Requirement.from_json(json.loads(metadata.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise PromptError(f"{metadata}: no requirement of the quickstart ({error!r})") from None
        files = sorted((metadata.parent / "samples").glob("*.png"))
        if not files:
            raise PromptError(f"{metadata.parent}: no images in samples/")
        for file in files:
            try:
                with Image.open(file) as image:
                    verdict = check(np.asarray(image.convert("RGB")), requirement)
            except (OSError, ValueError) as error:
                raise PromptError(f"{file}: {error}") from None
            requirements.append(requirement)
            verdicts.append(verdict)
            name = file.relative_to(folder).as_posix()
            rows.append({"file": name, "ok": verdict.ok, "reasons": list(verdict.reasons)})
    if not rows:
        raise PromptError(f"{folder}: holds no 00000/metadata.jsonl, ...: no images of this benchmark")
    scores = score_images(requirements, verdicts)
    out = folder if out is None else pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", scores | {"images": rows})
    parts = [f"  {name}: {value:.3f}" for name, value in scores["categories"].items()]
    return [f"quickstart ({len(rows)} images): {scores['overall']:.3f}", *parts]
