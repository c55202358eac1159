"""What a quickstart run leaves to look at: what was drawn, rebuilt and answered, as images and tables."""

import csv
import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from unitoken_jax.evaluate.markdown import markdown_table
from unitoken_jax.scenes.checker import Verdict, score_images
from unitoken_jax.scenes.dataset import Dataset
from unitoken_jax.scenes.prompts import CATEGORIES, Requirement
from unitoken_jax.scenes.questions import QUESTIONS, is_right, majority_guess, score_answers

_PAPER, _TEXT, _FAINT = (250, 250, 248), (35, 35, 40), (125, 125, 130)
RIGHT, WRONG = (40, 160, 75), (210, 60, 50)
_GAP = 14  # pixels between things on a sheet
_THUMBNAIL = 84  # pixels of the longer side of an image beside its question
_TITLES = {
    "single": "one object",
    "two": "two objects",
    "counting": "counting",
    "colours": "colours",
    "position": "positions",
    "attribution": "colour attribution",
}


def write_report(out: Path, dataset: Dataset, results) -> None:
    """Writes generated.png, reconstructions.png and answers.png, .md, .csv to the run directory `out`.

    `results` is an `evaluate.Results`. The sheets show the first examples of each kind, not the best.
    """
    out = Path(out)
    generated_sheet(results.prompts, results.drawn, results.verdicts).save(out / "generated.png")
    reconstruction_sheet(results.originals, results.reconstructions).save(out / "reconstructions.png")
    answers_sheet(results.questions, dataset.root).save(out / "answers.png")
    (out / "answers.md").write_text(answers_table(results.questions), encoding="utf-8")
    with (out / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        columns = ["set", "kind", "image", "question", "answer", "given"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(results.questions)


def generated_sheet(
    prompts: Sequence[Requirement], images: np.ndarray, verdicts: Sequence[Verdict], columns: int = 8
) -> Image.Image:
    """A sheet with a row for each category: images over their prompts, framed by the checker's verdict.

    `images` is uint8[n, h, w, 3], an image for each prompt; `columns` how many of a category are shown.
    """
    scores = score_images(prompts, verdicts)
    side, line = 5 * images.shape[2], 15
    cell, row = side + _GAP, 26 + side + 4 * line + _GAP
    categories = [name for name in CATEGORIES if name in scores["categories"]]
    sheet, pen = _blank(_GAP + columns * cell, 34 + len(categories) * row)
    title = f"Prompts and the images drawn for them: {scores['overall']:.0%} right (mean of the categories)"
    pen.text((_GAP, 12), title, _TEXT, _font(15))
    for number, category in enumerate(categories):
        top = 40 + number * row
        score = f"{_TITLES[category]}   {scores['categories'][category]:.0%}"
        pen.text((_GAP, top), score, _TEXT, _font(13))
        chosen = [index for index, prompt in enumerate(prompts) if prompt.category == category][:columns]
        for column, index in enumerate(chosen):
            x, y = _GAP + column * cell, top + 24
            verdict = verdicts[index]
            _paste_framed(sheet, pen, images[index], (x, y), 5, RIGHT if verdict.ok else WRONG)
            lines = [(text, _TEXT) for text in textwrap.wrap(prompts[index].prompt, 20)[:3]]
            lines += [(text, WRONG) for text in textwrap.wrap("; ".join(verdict.reasons), 21)]
            for line_number, (text, ink) in enumerate(lines[:4]):
                pen.text((x, y + side + 5 + line_number * line), text, ink, _font(12))
    return sheet


def reconstruction_sheet(
    originals: np.ndarray, rebuilt: np.ndarray, columns: int = 10, rows: int = 4
) -> Image.Image:
    """A sheet of evenly chosen `originals`, each over what the VQ tokenizer makes of it.

    `originals` and `rebuilt` are uint8[n, h, w, 3].
    """
    side = 4 * originals.shape[2]
    cell, row = side + _GAP, 2 * side + 4 + _GAP
    chosen = np.unique(np.linspace(0, len(originals) - 1, min(columns * rows, len(originals))).astype(int))
    rows = -(-len(chosen) // columns)
    sheet, pen = _blank(_GAP + columns * cell, 40 + rows * row)
    pen.text(
        (_GAP, 12),
        "Drawings of held-out scenes, and below each what the VQ tokenizer rebuilds",
        _TEXT,
        _font(15),
    )
    for number, index in enumerate(chosen):
        x, y = _GAP + number % columns * cell, 40 + number // columns * row
        sheet.paste(_enlarged(originals[index], 4), (x, y))
        sheet.paste(_enlarged(rebuilt[index], 4), (x, y + side + 4))
    return sheet


def answers_sheet(rows: Sequence[dict], root: Path, columns: int = 4) -> Image.Image:
    """A sheet with a row for each kind of question: images, questions, and given and true answers.

    `rows` are as for `score_answers`, their images below `root`.
    """
    scores = score_answers(rows)
    kinds = [kind for kind in QUESTIONS if kind in scores["kinds"]]
    cell, row = 300, 122
    sheet, pen = _blank(_GAP + columns * cell, 40 + len(kinds) * row)
    shares = ", ".join(f"{name} {scores[name]:.0%}" for name in ("general", "textread") if name in scores)
    pen.text((_GAP, 12), f"Held-out questions, answered right: {shares}", _TEXT, _font(15))
    for number, kind in enumerate(kinds):
        top = 42 + number * row
        group = [example for example in rows if example["kind"] == kind]
        pen.text((_GAP, top), f"{kind}   {scores['kinds'][kind]:.0%}   ({group[0]['set']})", _TEXT, _font(13))
        for column, example in enumerate(group[:columns]):
            _card(sheet, pen, example, root, (_GAP + column * cell, top + 22))
    return sheet


def _card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, row: dict, root: Path, corner: tuple[int, int]
) -> None:
    """Draws a question with its image at `corner` (x, y) of `sheet`."""
    x, y = corner
    ink = RIGHT if is_right(row["given"], row["answer"]) else WRONG
    with Image.open(root / row["image"]) as file:
        pixels = np.asarray(ImageOps.contain(file.convert("RGB"), (_THUMBNAIL, _THUMBNAIL)))
    _paste_framed(sheet, pen, pixels, corner, 1, ink)
    lines = [(text, _TEXT) for text in textwrap.wrap(row["question"], 28)[:2]]
    if ink == WRONG:
        lines += [(text, _FAINT) for text in textwrap.wrap(f"true: {row['answer']}", 32)[:2]]
    lines += [(text, ink) for text in textwrap.wrap(row["given"], 32)[:3]] or [("(nothing)", ink)]
    for line_number, (text, colour) in enumerate(lines[:6]):
        pen.text((x + _THUMBNAIL + 10, y - 3 + line_number * 15), text, colour, _font(12))


def answers_table(rows: Sequence[dict]) -> str:
    """Markdown: accuracy by kind beside that of the most frequent answer, then every question."""
    scores, guesses = score_answers(rows), majority_guess(rows)
    kinds = [kind for kind in QUESTIONS if kind in scores["kinds"]]
    accuracies = []
    for kind in kinds:
        group = [row for row in rows if row["kind"] == kind]
        accuracy, guess = scores["kinds"][kind], guesses[kind]
        accuracies.append((group[0]["set"], kind, len(group), f"{accuracy:.3f}", f"{guess:.3f}"))
    for name in ("general", "textread"):
        if name in scores:
            count = sum(row["set"] == name for row in rows)
            accuracies.append((f"**{name}**", "all", count, f"**{scores[name]:.3f}**", ""))
    columns = ("kind", "image", "question", "answer", "given")
    answers = [
        ("right" if is_right(row["given"], row["answer"]) else "WRONG", *(row[name] for name in columns))
        for row in rows
    ]
    tables = (
        markdown_table(("set", "kind", "questions", "right", "most frequent answer"), accuracies),
        markdown_table(("", "kind", "image", "question", "true answer", "given answer"), answers),
    )
    return "\n\n".join(("# Held-out questions", *tables)) + "\n"


def summary_text(out: Path, summary: dict) -> str:
    """The run's results, what to look at and what to try next, for the terminal."""
    out = Path(out)
    image = out / "data/images/held_out/000000.png"
    categories = ", ".join(
        f"{_TITLES[name]} {score:.2f}" for name, score in summary["generation_categories"].items()
    )
    return "\n".join(
        [
            "",
            f"questions   General {summary['general']:.2f}   TextRead {summary['textread']:.2f}",
            f"images    generation {summary['generation']:.2f}   ({categories})",
            f"tokenizer   {summary['vq_psnr_db']:.1f} dB PSNR on held-out images",
            f"cost        {summary['minutes']:.1f} minutes, {summary['peak_gib']:.1f} GiB of memory at most",
            "",
            f"Look at, in {out}:",
            "  generated.png        prompts and the images drawn for them",
            "  reconstructions.png  images before and after the VQ tokenizer",
            "  answers.png          questions with the given answers; answers.md and answers.csv have all",
            "  loss_curves.png      the training runs; summary.json has every number",
            "",
            "Try next:",
            f"  unitoken answer --model {out / 'model'} --image {image} \\",
            '      --question "describe the image"',
            f'  unitoken generate --model {out / "model"} --prompt "a red circle and a blue 7" --out my.png',
        ]
    )


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet of `width` x `height` pixels, and what draws on it."""
    sheet = Image.new("RGB", (width, height), _PAPER)
    return sheet, ImageDraw.Draw(sheet)


@functools.cache
def _font(size: int):
    return ImageFont.load_default(size)


def _enlarged(pixels: np.ndarray, factor: int) -> Image.Image:
    """uint8[h, w, 3] with each pixel a square of `factor` pixels a side."""
    image = Image.fromarray(pixels)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _paste_framed(sheet: Image.Image, pen: ImageDraw.ImageDraw, pixels, corner, factor: int, colour) -> None:
    """Pastes `pixels` uint8[h, w, 3], enlarged by `factor`, at `corner` (x, y) of `sheet`, with a frame."""
    image = _enlarged(pixels, factor)
    x, y = corner
    pen.rectangle((x - 3, y - 3, x + image.width + 2, y + image.height + 2), fill=colour)
    sheet.paste(image, corner)
