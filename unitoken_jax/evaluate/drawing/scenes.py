"""Drawing the small world as a benchmark: folders as GenEval's, judged at once by the built-in checker.

Its questions are `understanding/scenes.py`'s. Judging needs no model and no jax.
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np
from PIL import Image

from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark, ScoresError
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, PromptError, PromptLine, numbered_prompt
from unitoken_jax.evaluate.faults import named, parse_json
from unitoken_jax.scenes.benchmark_files import PROMPTS_FILE
from unitoken_jax.scenes.checker import check, score_images
from unitoken_jax.scenes.prompts import Requirement


@dataclasses.dataclass(frozen=True)
class SceneBenchmark(DrawingBenchmark):
    """Prompts whose metadata is a `Requirement` of the small world."""

    scored_here: ClassVar[bool] = True
    packaged: ClassVar[pathlib.Path | None] = PROMPTS_FILE

    def prompt_at(self, line: PromptLine, number: int) -> BenchmarkPrompt:
        return numbered_prompt(line, number, _check_metadata)

    def score(self, run_folder: pathlib.Path, scores: pathlib.Path | None = None) -> dict:
        """The checker's shares of right images, and its verdict on each.

        Raises PromptError naming the file where metadata or images are missing or of another size.
        """
        if scores is not None:
            raise ScoresError(
                f"{run_folder} is a run of {self.name}; --scores takes what the scorers of GenEval and "
                "T2I-CompBench++ write"
            )
        requirements, verdicts, rows = [], [], []
        for metadata in sorted(run_folder.glob("[0-9]*/metadata.jsonl")):
            requirement = _read_requirement(metadata)
            files = sorted((metadata.parent / "samples").glob("*.png"))
            if not files:
                raise PromptError(f"{metadata.parent}: no images in samples/")
            for file in files:
                with named(PromptError, str(file)), Image.open(file) as image:
                    verdict = check(np.asarray(image.convert("RGB")), requirement)
                requirements.append(requirement)
                verdicts.append(verdict)
                name = file.relative_to(run_folder).as_posix()
                rows.append({"file": name, "ok": verdict.ok, "reasons": list(verdict.reasons)})
        if not rows:
            raise PromptError(
                f"{run_folder}: holds no 00000/metadata.jsonl, ...: no images of this benchmark"
            )
        return score_images(requirements, verdicts) | {"images": rows}


def _check_metadata(metadata: dict) -> None:
    Requirement.from_json(metadata)


def _read_requirement(metadata: pathlib.Path) -> Requirement:
    with named(PromptError, str(metadata), "no requirement of the small world"):
        return Requirement.from_json(parse_json(metadata.read_text(encoding="utf-8")))


DRAW_SCENES = SceneBenchmark("DrawScenes", (), number=1, guidance=None)
