"""Examples of a benchmark's answers for the report: the first right ones, wrong ones and unclear ones."""

from collections.abc import Callable, Sequence

from PIL import Image

from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.understanding.prompts import options_of
from unitoken_jax.evaluate.understanding.scoring import JUDGE, Scored
from unitoken_jax.evaluate.understanding.table import INDEX, PREDICTION, QUESTION, Table

MAX_OF_KIND = 4  # Examples of a kind that are shown.
_LONGEST = 600  # Characters of a text that are shown.


def choose(table: Table, scored: Scored, images: Callable[[int], Sequence[Image.Image]] | None) -> list[dict]:
    """The first MAX_OF_KIND rows of every kind ("right", "wrong", ...), in the file's order.

    `images(row)` opens a row's images; None where there are none at hand. Each example is a dict of plain
    values, for JSON: `kind`, `images` (small JPEGs in base64), and `lines`, {label: text}.
    """
    kinds: dict[str, list[int]] = {"right": [], "wrong": [], "names no single option": [], "for a judge": []}
    for row, (match, hit) in enumerate(zip(scored.matches, scored.hits)):
        if match == JUDGE:
            kind = "for a judge"
        elif hit:
            kind = "right"
        else:
            kind = "names no single option" if match is None else "wrong"
        kinds[kind].append(row)
    if "answer" not in table.columns:
        kinds = {"without an answer in the file": list(range(len(table.rows)))}
    return [
        _example(table, scored, row, kind, images)
        for kind, rows in kinds.items()
        for row in rows[:MAX_OF_KIND]
    ]


def _example(table: Table, scored: Scored, row: int, kind: str, images) -> dict:
    """One of the dicts that `choose` returns."""
    cells = table.rows[row]
    options = [f"{letter}. {text}" for letter, text in options_of(cells).items()]
    match = scored.matches[row]
    lines = {
        kind: "",
        "index": cells[INDEX],
        "question": "\n".join([cells.get(QUESTION, ""), *options]),
        "answer": cells.get("answer", ""),
        "prediction": cells[PREDICTION] or "(nothing)",
        "taken for": "" if match is None or match == JUDGE else match,
    }
    shown = [] if images is None else [page.small_jpeg(image) for image in images(row)]
    return {
        "kind": kind,
        "images": shown,
        "lines": {name: _cut(text) for name, text in lines.items() if text or name == kind},
    }


def _cut(text: str) -> str:
    """The beginning of a text that is too long to show."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def cards(examples: Sequence[dict]) -> str:
    """HTML of the examples that `choose` returned, as cards."""
    colour = {"right": "right", "wrong": "wrong"}
    return page.cards(
        page.card(example["images"], example["lines"], colour.get(example["kind"], ""))
        for example in examples
    )
