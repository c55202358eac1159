"""T2I-CompBench++: lists of prompts, each judged by a model of its own.

Read from github.com/Karine-Huang/T2I-CompBench.

prompt file     LIST_val.txt: a line a prompt, up to the first tab
images          LIST/samples/{prompt}_{n:06d}.png      (n counts through the list; nothing else there)
scorer writes   vqa_result.json: [{"question_id": n, "answer": score}, ...], n as in the image's name
"""

import dataclasses
import math
import os
import pathlib

from unitoken_jax.evaluate.drawing.benchmark import (
    DrawingBenchmark,
    ScoresError,
    check_complete,
    read_scores,
)
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, PromptError, PromptLine, read_drawn
from unitoken_jax.evaluate.faults import encodable, named, parse_json

_LONGEST_NAME = 255  # Bytes of a file's name, on common file systems.
# Where the list's scorer puts its last word. A noun phrase's own vqa_result.json has the same form.
_FOLDERS = {
    "color": "annotation_blip",
    "shape": "annotation_blip",
    "texture": "annotation_blip",
    "spatial": "annotation_obj_detection_2d",
    "3d_spatial": "annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}


@dataclasses.dataclass(frozen=True)
class T2ICompBench(DrawingBenchmark):
    """A folder a list, and the mean score of a list's images."""

    def prompt_at(self, line: PromptLine, number: int) -> BenchmarkPrompt:
        """The prompt up to the first tab; PromptError where it cannot be part of a file's name."""
        prompt = line.text.rstrip("\r").split("\t")[0]
        samples = f"{_list_name(line.path)}/samples"
        names = [f"{prompt}_{line.order * number + sample:06d}.png" for sample in range(number)]
        for mark in "/_\0":
            if mark in prompt:
                raise PromptError(
                    f"{line.source}: {mark!r} in {prompt[:60]!r}: the benchmark's file names cannot hold it"
                )
        if len(names[-1].encode()) > _LONGEST_NAME:
            raise PromptError(f"{line.source}: too long for a file name: {prompt[:60]!r}...")
        return BenchmarkPrompt(prompt, line.source, tuple(f"{samples}/{name}" for name in names))

    def run_folder(self, data: str | os.PathLike, out: pathlib.Path) -> pathlib.Path:
        return out / _list_name(pathlib.Path(data))

    def image_root(self, run_folder: pathlib.Path) -> pathlib.Path:
        return run_folder.parent

    def score(self, run_folder: pathlib.Path, scores: pathlib.Path | None = None) -> dict:
        """The mean over the list's images. The file names no prompts: where it lies says whose it is."""
        if scores is None:
            raise self.needs_scorer()
        prompts = read_drawn(run_folder)
        if not scores.resolve().is_relative_to(run_folder.resolve()):
            raise ScoresError(
                f"{scores} does not lie in {run_folder}, and names no prompts to know it by: "
                "give the file where its scorer wrote it, or copy its folder there"
            )
        scorer_folder = _FOLDERS.get(run_folder.name)
        if scorer_folder is not None and scores.resolve().parent.name != scorer_folder:
            raise ScoresError(
                f"{scores}: the score of list {run_folder.name} is {scorer_folder}/vqa_result.json"
            )
        files = [file for prompt in prompts for file in prompt.files]
        with named(ScoresError, str(scores), 'expected [{"question_id": 0, "answer": 0.5}, ...]'):
            entries = parse_json(read_scores(scores))
            numbered_scores = [(int(entry["question_id"]), float(entry["answer"])) for entry in entries]
        values: dict[int, float] = {}
        for number, value in numbered_scores:
            if not 0 <= number < len(files):
                raise ScoresError(
                    f"{scores}: question_id {number}, but the run has {len(files)} images, from 0"
                )
            if number in values:
                raise ScoresError(f"{scores}: question_id {number} twice")
            if not math.isfinite(value) or abs(value) > 1:
                raise ScoresError(f"{scores}: question_id {number} has {value}; expected at most 1")
            values[number] = value
        check_complete(
            scores, [file for number, file in enumerate(files) if number not in values], len(files)
        )
        overall = sum(values.values()) / len(files)
        images = [{"file": file, "score": values[number]} for number, file in enumerate(files)]
        return {"overall": overall, "categories": {run_folder.name: overall}, "notes": [], "images": images}


def _list_name(path: pathlib.Path) -> str:
    """The list that prompt file `path` is: "color" of color_val.txt."""
    return encodable(path.stem).removesuffix("_val")


T2I_COMPBENCH = T2ICompBench(
    "T2I-CompBench++",
    ("T2I-CompBench", "T2ICompBench"),
    number=10,
    guidance=5.0,
    paper={"color": (0.7115, 0.7833), "shape": (0.5179, 0.5847), "texture": (0.6670, 0.7315)},
)
