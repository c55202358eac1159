"""How a question is put: its text, its options, and what the template says after them."""

import dataclasses
import string
from collections.abc import Mapping

from unitoken_jax.evaluate.understanding.table import QUESTION


@dataclasses.dataclass(frozen=True)
class Template:
    """A wording: `choice` follows the options of a question, `short` a question to answer in a word."""

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


def options_of(row: Mapping[str, str]) -> dict[str, str]:
    """{letter: text} of the options that are there."""
    return {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter, "") != ""}


def choice_text(row: Mapping[str, str], template: Template) -> str:
    """A multiple-choice question: hint, question, options, and the template's request for one of them."""
    lines = [f"Hint: {row['hint']}\n"] if row.get("hint") else []
    lines.append(f"Question: {row[QUESTION]}\n")
    if options := options_of(row):
        lines.append("Options:\n")
        lines += [f"{letter}. {text}\n" for letter, text in options.items()]
        lines.append(template.choice)
    return "".join(lines)


def short_text(row: Mapping[str, str], template: Template) -> str:
    """A question that is answered by a word: yes, no, or a reading."""
    return row[QUESTION] + template.short
