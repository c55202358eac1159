"""What GenEval's and T2I-CompBench++'s own scorers say about a run's images, taken up into its report.

    GenEval           results.jsonl: a line an image, with filename, tag, correct, reason, metadata
    T2I-CompBench++   vqa_result.json: [{"question_id": n, "answer": score}, ...], n as in the image's name

A file that is not about exactly the run's images is refused. Needs no model and no jax.
"""

import json
import math
import os
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.drawing.gallery import RESULTS, write_gallery
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, find_drawing_benchmark, read_drawn

_TASKS = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "color attribution",
}
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


class ScoresError(ValueError):
    """A scorer's file that cannot be used; the message names the place and what is wrong."""


def import_scores(
    scores: str | os.PathLike, out: str | os.PathLike, benchmark: str | None = None
) -> list[str]:
    """Takes file `scores` up into run folder `out` (that of recipe.json); lines for the user.

    Writes results.json and the report there. Raises FileNotFoundError where `out` is no run, ScoresError
    where `scores` is not about its images.
    """
    scores, root = pathlib.Path(scores), pathlib.Path(out)
    if not (root / "recipe.json").exists():
        raise FileNotFoundError(
            f"{root} holds no recipe.json: --out is the folder that was drawn into; for T2I-CompBench++ that "
            "of one list, for example t2i/color"
        )
    recipe = recipes.load(root / "recipe.json")
    found = find_drawing_benchmark(recipe["benchmark"])
    if benchmark is not None and find_drawing_benchmark(benchmark) != found:
        raise ScoresError(f"{root} is a run of {recipe['benchmark']}, not of {benchmark}")
    if found is None or not found.paper:
        raise ScoresError(
            f"{root} is a run of {recipe['benchmark']}; --scores takes what the scorers of GenEval and "
            "T2I-CompBench++ write"
        )
    prompts = read_drawn(root)
    lists = found.name == "T2I-CompBench++"
    made = _t2i(scores, root, prompts) if lists else _geneval(scores, root, prompts)
    made = {"benchmark": found.name, "scores": recipes.checksum(scores) | {"file": scores.name}} | made
    recipes.write_json(root / RESULTS, made)
    report = write_gallery(root, root.parent if lists else root, found, prompts, recipe["settings"])
    lines = [f"{found.name} ({len(made['images'])} images): {made['overall']:.4f}"]
    if not lists:
        lines += [f"  {name}: {value:.4f}" for name, value in made["categories"].items()]
    return [*lines, *(f"  note: {note}" for note in made["notes"]), f"report: {report}"]


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no scores at {path}") from None
    except UnicodeDecodeError as error:
        raise ScoresError(f"{path}: not UTF-8 ({error})") from None


def _geneval(scores: pathlib.Path, root: pathlib.Path, prompts: Sequence[BenchmarkPrompt]) -> dict:
    """The mean over tasks of the share of right images, as GenEval's summary has it."""
    asked = {}
    for prompt in prompts:
        metadata = json.loads((root / prompt.files[0]).parent.with_name("metadata.jsonl").read_text("utf-8"))
        asked |= dict.fromkeys(prompt.files, metadata)
    verdicts: dict[str, dict] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(_text(scores).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{scores}:{number}"
        entry = _entry(place, line)
        name = _name(place, entry["filename"], root, asked)
        if name in lines:
            raise ScoresError(f"{place}: {name} again; it is at line {lines[name]} already")
        if entry["metadata"] != asked[name] or entry["tag"] != asked[name]["tag"]:
            raise ScoresError(
                f"{place}: {name} was judged by {entry['metadata'].get('prompt')!r}, but the run's "
                f"metadata.jsonl asks for {asked[name]['prompt']!r}, or otherwise for it: another run's"
            )
        lines[name] = number
        reasons = [reason for reason in str(entry.get("reason") or "").split("\n") if reason]
        verdicts[name] = {"file": name, "ok": entry["correct"], "reasons": reasons}
    _all_there(scores, [name for name in asked if name not in verdicts], len(asked))
    tasks = defaultdict(list)
    for name, metadata in asked.items():
        tasks[_TASKS.get(metadata["tag"], metadata["tag"])].append(verdicts[name]["ok"])
    categories = {task: sum(right) / len(right) for task, right in tasks.items()}
    absent = [task for task in _TASKS.values() if task not in categories]
    notes = [f"overall is the mean of the tasks that are there; {', '.join(absent)} are not"] * bool(absent)
    overall = sum(categories.values()) / len(categories)
    images = [verdicts[name] for name in asked]
    return {"overall": overall, "categories": categories, "notes": notes, "images": images}


def _entry(place: str, line: str) -> dict:
    """A line of results.jsonl, its metadata read."""
    try:
        entry = json.loads(line)
        metadata = entry["metadata"]
        entry["metadata"] = json.loads(metadata) if isinstance(metadata, str) else metadata
        good = isinstance(entry["correct"], bool) and isinstance(entry["metadata"], dict)
        if not good or not isinstance(entry["filename"], str) or "tag" not in entry:
            raise ValueError("a value of another type")
    except (ValueError, KeyError, TypeError) as error:
        raise ScoresError(
            f"{place}: no line of GenEval's results.jsonl ({error!r}): filename, tag, correct, metadata"
        ) from None
    return entry


def _name(place: str, filename: str, root: pathlib.Path, asked: Mapping) -> str:
    """The image's path below the run's folder, wherever that lay when it was scored."""
    name = "/".join(filename.replace("\\", "/").split("/")[-3:])
    if name not in asked:
        raise ScoresError(f"{place}: {filename} is no image of the run in {root}")
    if os.path.exists(filename) and not os.path.samefile(filename, root / name):
        raise ScoresError(f"{place}: {filename} lies in another folder than {root}: another run's scores")
    return name


def _t2i(scores: pathlib.Path, root: pathlib.Path, prompts: Sequence[BenchmarkPrompt]) -> dict:
    """The mean over the list's images. The file names no prompts: where it lies says what it is about."""
    if not scores.resolve().is_relative_to(root.resolve()):
        raise ScoresError(
            f"{scores} does not lie in {root}, and names no prompts by which to know what it is about: give "
            "the file where its scorer wrote it, or copy its folder there"
        )
    wanted = _FOLDERS.get(root.name)
    if wanted is not None and scores.resolve().parent.name != wanted:
        raise ScoresError(f"{scores}: the score of list {root.name} is {wanted}/vqa_result.json")
    files = [file for prompt in prompts for file in prompt.files]
    try:
        found = json.loads(_text(scores))
        given = [(int(entry["question_id"]), float(entry["answer"])) for entry in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ScoresError(
            f'{scores}: expected [{{"question_id": 0, "answer": 0.5}}, ...] ({error!r})'
        ) from None
    values: dict[int, float] = {}
    for number, value in given:
        if not 0 <= number < len(files):
            raise ScoresError(f"{scores}: question_id {number}, but the run has {len(files)} images, from 0")
        if number in values:
            raise ScoresError(f"{scores}: question_id {number} twice")
        if not math.isfinite(value) or abs(value) > 1:
            raise ScoresError(f"{scores}: question_id {number} has {value}; expected at most 1")
        values[number] = value
    _all_there(scores, [file for number, file in enumerate(files) if number not in values], len(files))
    overall = sum(values.values()) / len(files)
    images = [{"file": file, "score": values[number]} for number, file in enumerate(files)]
    return {"overall": overall, "categories": {root.name: overall}, "notes": [], "images": images}


def _all_there(scores: pathlib.Path, missing: Sequence[str], number: int) -> None:
    if missing:
        raise ScoresError(
            f"{scores} lacks {len(missing)} of {number} images, the first is {missing[0]}: run the "
            "scorer on the whole folder"
        )
