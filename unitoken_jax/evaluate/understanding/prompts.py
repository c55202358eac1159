"""Rows -> what the model is asked: images and text in order."""

import dataclasses
import re
import string
from collections.abc import Sequence

from PIL import Image

from unitoken_jax.evaluate.understanding.benchmarks import Benchmark
from unitoken_jax.evaluate.understanding.table import IMAGE, QUESTION, Table

_MARK = re.compile(r"<image (\d+)>")


@dataclasses.dataclass(frozen=True)
class Template:
    """What follows the options of a multiple-choice question, and a yes/no or reading question."""

    name: str
    choice: str
    short: str


# How a question is put moves scores by many points, so a run's recipe records it.
TEMPLATES = {
    template.name: template
    for template in (
        Template("vlmevalkit", "Please select the correct answer from the options above. \n", ""),
        Template(
            "direct",
            "Answer with the option's letter from the given choices directly.",
            "\nAnswer the question using a single word or phrase.",
        ),
    )
}


def find_template(name: str) -> Template:
    """The template called `name`; ValueError listing them."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def options_of(row: dict[str, str]) -> dict[str, str]:
    """{letter: text} of the options that are there."""
    return {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter, "") != ""}


def question_text(benchmark: Benchmark, row: dict[str, str], template: Template) -> str:
    """The question as it is put, without its images."""
    if benchmark.family in ("mme", "hallusion", "ocr"):
        return row[QUESTION] + template.short
    if benchmark.family in ("mathvista", "mmvet"):
        return row[QUESTION]  # MathVista's own text already says how to answer
    lines = [f"Hint: {row['hint']}\n"] if row.get("hint") else []
    lines.append(f"Question: {row[QUESTION]}\n")
    if options := options_of(row):
        lines.append("Options:\n")
        lines += [f"{letter}. {text}\n" for letter, text in options.items()]
        lines.append(template.choice)
    return "".join(lines)


def question_parts(
    benchmark: Benchmark, table: Table, number: int, images: Sequence[Image.Image], template: Template
) -> list[str | Image.Image]:
    """Row `number`'s images and text in reading order: images first, or where MMMU's `<image N>` stand.

    Raises TableError where the text names an image that the row does not have.
    """
    text = question_text(benchmark, table.rows[number], template)
    if benchmark.family != "mmmu" or not _MARK.search(text):
        return [*images, text]
    parts: list[str | Image.Image] = []
    for place, piece in enumerate(_MARK.split(text)):
        if place % 2 == 0:
            parts += [piece] if piece else []
        elif 1 <= int(piece) <= len(images):
            parts.append(images[int(piece) - 1])
        else:
            raise table.fault(number, IMAGE, f"{len(images)} images, but the text names <image {piece}>")
    return parts
