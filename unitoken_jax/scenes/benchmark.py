"""The benchmarks of the small world that the package contains, and the command that writes them.

    python -m unitoken_jax.scenes.benchmark --out unitoken_jax/scenes/benchmark_files

Scenes.tsv          questions in VLMEvalKit's format: index, image (base64 of a JPEG file), question, A to D,
                    answer, category (the kind of question), l2-category
DrawScenes.jsonl    prompts with what an image must show, a line of JSON each, as GenEval's

Scenes and handwriting are held out, images are as people draw them. A question is put in one of three ways:
with options, of which `answer` is the letter; with a request for yes or no; or openly, as for a caption.
"""

import argparse
import base64
import csv
import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from unitoken_jax.scenes import questions
from unitoken_jax.scenes.benchmark_files import FOLDER, PROMPTS_FILE, QUESTIONS_FILE
from unitoken_jax.scenes.dataset import held_out_question
from unitoken_jax.scenes.prompts import CATEGORIES, Requirement, random_prompt
from unitoken_jax.scenes.scene import Scene
from unitoken_jax.scenes.texture import texture
from unitoken_jax.scenes.variation import draw_varied
from unitoken_jax.scenes.wording import LETTERS, YES_OR_NO, options_for
from unitoken_jax.storage.atomic import write_text

COLUMNS = ("index", "image", "question", *LETTERS, "answer", "category", "l2-category")
_QUESTIONS = 200
_PROMPTS = 10  # of each category
_SIDES = 100, 160  # pixels; shortest and longest side of an image
_QUALITY = 85  # of JPEG
_GROUPS = {"general": "General", "textread": "TextRead"}  # the paper's two averages


def question_rows() -> list[dict[str, str]]:
    """The rows of Scenes.tsv, {column: cell}; every kind of question in turn."""
    kinds = list(questions.QUESTIONS)
    return [_row(index, kinds[index % len(kinds)]) for index in range(_QUESTIONS)]


def _row(index: int, kind: str) -> dict[str, str]:
    rng = random.Random(f"benchmark {index}")
    question, scene = held_out_question(kind, rng)
    row = dict.fromkeys(COLUMNS, "")
    row |= {"index": str(index), "question": question.text, "answer": question.answer, "category": kind}
    row["l2-category"] = _GROUPS[question.set]
    if question.answer in ("yes", "no") and rng.random() < 0.5:
        row |= {"question": question.text + YES_OR_NO, "answer": question.answer.capitalize()}
    elif options := options_for(question, rng):
        row |= dict(zip(LETTERS, options)) | {"answer": LETTERS[options.index(question.answer)]}
    row["image"] = base64.b64encode(_jpeg(_image(scene, rng))).decode()
    return row


def _image(scene: Scene, rng: random.Random) -> np.ndarray:
    """A drawing of the scene, or of an empty one what looks like a photograph, uint8[h, w, 3] of _SIDES."""
    while True:
        image = draw_varied(scene, rng, "held_out") if scene else texture(rng)
        if min(image.shape[:2]) >= _SIDES[0] and max(image.shape[:2]) <= _SIDES[1]:
            return image


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()


def prompts() -> list[Requirement]:
    """The prompts of DrawScenes.jsonl: as many different ones of each category, by category."""
    chosen: list[Requirement] = []
    for category in CATEGORIES:
        rng = random.Random(f"benchmark {category}")
        unique: dict[str, Requirement] = {}
        while len(unique) < _PROMPTS:
            requirement = random_prompt(category, rng, "held_out")
            unique.setdefault(requirement.prompt, requirement)
        chosen += unique.values()
    return chosen


def write_benchmarks(out: Path) -> None:
    """Writes both files to folder `out`; the same bytes each time."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(question_rows())
    write_text(out / QUESTIONS_FILE.name, text.getvalue())
    lines = (json.dumps(requirement.to_json()) + "\n" for requirement in prompts())
    write_text(out / PROMPTS_FILE.name, "".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the small world's benchmarks.")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: in the package")
    write_benchmarks(parser.parse_args().out)
