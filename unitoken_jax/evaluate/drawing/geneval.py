"""GenEval: short prompts about objects, judged by its authors' detector (github.com/djghosh13/geneval).

prompt file     a line of metadata a prompt: {"tag": ..., "include": [...], "prompt": ...}
images          {line:05d}/metadata.jsonl, {line:05d}/samples/{sample:05d}.png      (line from 0)
scorer writes   results.jsonl: a line an image, with filename, tag, correct, reason, metadata
"""

import dataclasses
import os
import pathlib
from collections import defaultdict
from collections.abc import Mapping

from unitoken_jax.evaluate.drawing.benchmark import (
    DrawingBenchmark,
    ScoresError,
    check_complete,
    read_scores,
)
from unitoken_jax.evaluate.drawing.prompts import (
    BenchmarkPrompt,
    PromptLine,
    numbered_prompt,
    read_drawn,
)
from unitoken_jax.evaluate.faults import named, parse_json, read_json

# The scorer's tag -> the task's name in the paper's Table 4.
_TASKS = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "color attribution",
}


@dataclasses.dataclass(frozen=True)
class GenEval(DrawingBenchmark):
    """GenEval's folders, and the mean of its tasks."""

    def prompt_at(self, line: PromptLine, number: int) -> BenchmarkPrompt:
        return numbered_prompt(line, number, _check_metadata)

    def score(self, run_folder: pathlib.Path, scores: pathlib.Path | None = None) -> dict:
        """The mean over tasks of the share of right images, as GenEval's summary has it."""
        if scores is None:
            raise self.needs_scorer()
        metadata_of: dict[str, dict] = {}
        for prompt in read_drawn(run_folder):
            path = (run_folder / prompt.files[0]).parent.with_name("metadata.jsonl")
            metadata = read_json(path, {"tag": str, "include": list, "prompt": str})
            metadata_of |= dict.fromkeys(prompt.files, metadata)
        verdicts: dict[str, dict] = {}
        lines: dict[str, int] = {}
        for number, line in enumerate(read_scores(scores).split("\n"), 1):
            if not line.strip():
                continue
            source = f"{scores}:{number}"
            entry = _read_entry(source, line)
            name = _image_name(source, entry["filename"], run_folder, metadata_of)
            if name in lines:
                raise ScoresError(f"{source}: {name} again; it is at line {lines[name]} already")
            if entry["metadata"] != metadata_of[name] or entry["tag"] != metadata_of[name]["tag"]:
                raise ScoresError(
                    f"{source}: {name} was judged by {entry['metadata'].get('prompt')!r}, but the "
                    f"run's metadata.jsonl asks for {metadata_of[name]['prompt']!r}, or otherwise for it: "
                    "another run's"
                )
            lines[name] = number
            reasons = [reason for reason in str(entry.get("reason") or "").split("\n") if reason]
            verdicts[name] = {"file": name, "ok": entry["correct"], "reasons": reasons}
        check_complete(scores, [name for name in metadata_of if name not in verdicts], len(metadata_of))
        tasks = defaultdict(list)
        for name, metadata in metadata_of.items():
            tasks[_TASKS.get(metadata["tag"], metadata["tag"])].append(verdicts[name]["ok"])
        categories = {task: sum(right) / len(right) for task, right in tasks.items()}
        absent = [task for task in _TASKS.values() if task not in categories]
        notes = [f"overall is the mean of the tasks that are there; {', '.join(absent)} are not"] * bool(
            absent
        )
        overall = sum(categories.values()) / len(categories)
        images = [verdicts[name] for name in metadata_of]
        return {"overall": overall, "categories": categories, "notes": notes, "images": images}


GENEVAL = GenEval(
    "GenEval",
    (),
    number=4,
    guidance=5.5,
    paper={
        "overall": (0.58, 0.63),
        "single object": (0.98, 0.99),
        "two objects": (0.75, 0.80),
        "counting": (0.39, 0.35),
        "colors": (0.81, 0.84),
        "position": (0.26, 0.38),
        "color attribution": (0.32, 0.39),
    },
)


def _check_metadata(metadata: dict) -> None:
    """Raises KeyError or TypeError where `metadata` lacks what the scorer reads."""
    metadata["tag"], metadata["include"]
    if not isinstance(metadata["tag"], str):
        raise TypeError(f'"tag" is {metadata["tag"]!r}; expected a text')


def _read_entry(source: str, line: str) -> dict:
    """A line of results.jsonl, with its metadata as a dict. ScoresError where it is none."""
    problem = "no line of GenEval's results.jsonl, with filename, tag, correct, metadata"
    with named(ScoresError, source, problem):
        entry = parse_json(line)
        metadata = entry["metadata"]
        entry["metadata"] = parse_json(metadata) if isinstance(metadata, str) else metadata
        good = isinstance(entry["correct"], bool) and isinstance(entry["metadata"], dict)
        if not good or not isinstance(entry["filename"], str) or "tag" not in entry:
            raise ValueError("a value of another type")
    return entry


def _image_name(source: str, filename: str, run_folder: pathlib.Path, metadata_of: Mapping) -> str:
    """The image's path below the run's folder, wherever that lay when it was scored."""
    name = "/".join(filename.replace("\\", "/").split("/")[-3:])
    if name not in metadata_of:
        raise ScoresError(f"{source}: {filename} is no image of the run in {run_folder}")
    if os.path.exists(filename) and not os.path.samefile(filename, run_folder / name):
        raise ScoresError(
            f"{source}: {filename} lies in another folder than {run_folder}: another run's scores"
        )
    return name
