"""What a fine-tuning has changed: held-out answers and images before and after, as a PNG and a page."""

import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unitoken_jax.config import Config
from unitoken_jax.data.loader import Validation
from unitoken_jax.evaluate import page
from unitoken_jax.finetune.rehearsal import FOLDER
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.conversation import image_source
from unitoken_jax.sequence.image import open_image
from unitoken_jax.train.logs.curves import draw_curves
from unitoken_jax.train.logs.metrics import read_metrics
from unitoken_jax.train.logs.samples import Question, first_of, prompts_and_questions
from unitoken_jax.train.results import ADAPTER_FOLDER, MODEL_FOLDER

SHEET, PAGE, CURVES = "before_after.png", "report.html", "loss_curves.png"
EXAMPLES = 64  # held-out questions that are asked, and prompts that are drawn, at most
SHOWN = 12  # of each, in the sheet
_SIDE, _WIDTH, _GAP = 104, 900, 12  # pixels of a thumbnail, of the sheet, between things
_PAPER, _TEXT, _FAINT, _RIGHT, _WRONG = "white", "#222222", "#777777", "#1c8a3c", "#c8321f"


@dataclasses.dataclass(frozen=True)
class Answered:
    """A held-out question with both models' answers, and the data's ("" where it has none)."""

    question: Question
    before: str
    after: str

    @property
    def images(self) -> list[Image.Image]:
        """Those of the question."""
        return [open_image(image_source(part)) for part in self.question.conversation.images]

    def is_right(self, answer: str) -> bool:
        """Whether `answer` is the data's, spaces and letters' case apart."""
        return answer.split() != [] and answer.lower().split() == self.question.truth.lower().split()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A held-out prompt with both models' images of it, of the same seed."""

    prompt: str
    before: Image.Image
    after: Image.Image


def write_report(config: Config, model: str, folder: pathlib.Path) -> dict:
    """Asks and draws with both models, writes SHEET, PAGE and CURVES into `folder`; the numbers."""
    answered, drawn = _compare(config, model, folder)
    metrics = read_metrics(folder)
    held_out = [row for row in metrics if row.get("validation_loss") is not None]
    known = [row for row in answered if row.question.truth]
    summary = {
        "steps": config.train.steps,
        "held_out_questions": len(known),
        "answers_as_in_the_data_before": sum(row.is_right(row.before) for row in known),
        "answers_as_in_the_data_after": sum(row.is_right(row.after) for row in known),
        "losses": {
            name: metrics[-1].get(name)
            for name in ("loss", "understanding_loss", "generation_loss")
            if metrics
        },
    }
    if held_out:
        best = min(held_out, key=lambda row: row["validation_loss"])
        summary["best_step"] = best["step"]
        summary["best_held_out"] = {
            name.removeprefix("validation_"): value
            for name, value in best.items()
            if name.startswith("validation_")
        }
    _sheet(answered[:SHOWN], drawn[:SHOWN]).save(folder / SHEET)
    draw_curves(folder, folder / CURVES)
    _write_page(folder, answered, drawn, summary)
    return summary


def closing_lines(config: Config, folder: pathlib.Path, summary: dict) -> list[str]:
    """The results, what to look at and what to do next, for the terminal."""
    lines = ["", f"result      {result_path(config, folder)}"]
    if "best_step" in summary:
        loss = summary["best_held_out"]["loss"]
        lines.append(f"held out    loss {loss:.3f} at step {summary['best_step']}, the best, which is kept")
    if number := summary["held_out_questions"]:
        before, after = (summary[f"answers_as_in_the_data_{when}"] for when in ("before", "after"))
        lines.append(f"answers     as in the data: {before} of {number} before, {after} of {number} after")
    lines.append(f"time        {summary['minutes']:.1f} minutes")
    lines += [
        "",
        f"Look at {folder / SHEET}, or {folder / PAGE} in a browser. Next:",
    ]
    if config.lora.rank:
        return [
            *lines,
            f'  unitoken answer --adapter {folder} --image x.png --question "what is this?"',
            f'  unitoken generate --adapter {folder} --prompt "..." --out drawn.png',
            f"  unitoken merge --adapter {folder} --out MODEL2",
        ]
    return [
        *lines,
        f'  unitoken answer --model {folder / MODEL_FOLDER} --image x.png --question "what is this?"',
        f'  unitoken generate --model {folder / MODEL_FOLDER} --prompt "..." --out drawn.png',
    ]


def result_path(config: Config, folder: pathlib.Path) -> pathlib.Path:
    """The adapter folder or model directory that a finished run leaves."""
    return folder / (ADAPTER_FOLDER if config.lora.rank else MODEL_FOLDER)


def _compare(config: Config, model: str, folder: pathlib.Path) -> tuple[list[Answered], list[Drawn]]:
    """Held-out questions and prompts (of the data itself, where nothing is held out) by both models."""
    from unitoken_jax.unitoken import UniToken

    base = UniToken.load(model)
    result = result_path(config, folder)
    tuned = base.with_adapter(result) if config.lora.rank else UniToken.load(result)
    data, known = config.data, str(folder / FOLDER)
    own = [source for source in data.validation or data.sources if not source.path.startswith(known)]
    data = dataclasses.replace(data, validation=tuple(own))
    sources = Validation(data, config.model, base.tokenizer).sources
    prompts, questions = prompts_and_questions(first_of(sources), EXAMPLES, lambda question: True)
    asked = [question.conversation for question in questions]
    answers = [one.answer(asked) if asked else [] for one in (base, tuned)]
    drawable = prompts[:SHOWN] if base.params.get("vqgan", {}).get("decoder") else []
    images = [one.generate(drawable, seed=config.train.seed) if drawable else [] for one in (base, tuned)]
    return (
        [Answered(*row) for row in zip(questions, *answers)],
        [
            Drawn(prompt.removeprefix(TEXT_TO_IMAGE_INSTRUCTION), *both)
            for prompt, *both in zip(drawable, *images)
        ],
    )


def _sheet(answered: Sequence[Answered], drawn: Sequence[Drawn]) -> Image.Image:
    """Both models' answers and images, row by row."""
    row = _SIDE + _GAP
    sheet = Image.new("RGB", (_WIDTH, 44 + row * max(1, len(answered) + len(drawn))), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 12), "Held out: before and after", _TEXT, _font(17))
    top = 44
    for item in answered:
        for image in item.images[:1]:
            _paste(sheet, image, (_GAP, top))
        left = _GAP * 2 + _SIDE
        _write(pen, (left, top), item.question.text.replace("<|image|>", ""), _TEXT, 92)
        for number, (name, answer) in enumerate((("before", item.before), ("after", item.after))):
            known = item.question.truth
            colour = _TEXT if not known else _RIGHT if item.is_right(answer) else _WRONG
            _write(pen, (left, top + 32 + 24 * number), f"{name}: {answer}", colour, 92)
        if item.question.truth:
            _write(pen, (left, top + 82), f"in the data: {item.question.truth}", _FAINT, 92)
        top += row
    for pair in drawn:
        _paste(sheet, pair.before, (_GAP, top))
        _paste(sheet, pair.after, (_GAP * 2 + _SIDE, top))
        _write(pen, (_GAP * 3 + 2 * _SIDE, top + 20), pair.prompt, _TEXT, 72)
        _write(pen, (_GAP * 3 + 2 * _SIDE, top + 62), "left: before; right: after", _FAINT, 72)
        top += row
    return sheet


def _paste(sheet: Image.Image, image: Image.Image, corner: tuple[int, int]) -> None:
    """Pastes `image` as a thumbnail; small ones are enlarged pixel by pixel."""
    small = max(image.size) < _SIDE
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    sheet.paste(ImageOps.contain(image.convert("RGB"), (_SIDE, _SIDE), method), corner)


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: str, width: int) -> None:
    """One line of `text`, cut where it is longer than `width` characters."""
    pen.text(corner, textwrap.shorten(text, width, placeholder=" ..."), colour, _font(14))


@functools.cache
def _font(size: int):
    return ImageFont.load_default(size)


def _write_page(
    folder: pathlib.Path, answered: Sequence[Answered], drawn: Sequence[Drawn], summary: dict
) -> None:
    """The page: numbers, then every question and prompt with both models' answers and images."""
    numbers = {key: value for key, value in summary.items() if not isinstance(value, dict)}
    for group, values in summary.items():
        if isinstance(values, dict):
            numbers |= {f"{group}: {name}": f"{value:.4g}" for name, value in values.items() if value}
    answer_cards = [
        page.card(
            [page.small_jpeg(image) for image in item.images],
            {
                "asked": item.question.text.replace("<|image|>", ""),
                "before": item.before,
                "after": item.after,
                "in the data": item.question.truth,
            },
            "right" if item.is_right(item.after) else "wrong" if item.question.truth else "",
        )
        for item in answered
    ]
    drawing_cards = [
        page.card([page.small_jpeg(pair.before), page.small_jpeg(pair.after)], {"prompt": pair.prompt})
        for pair in drawn
    ]
    body = [page.table(("", ""), numbers.items())]
    if answer_cards:
        body += [page.heading("Held-out questions"), page.cards(answer_cards)]
    if drawing_cards:
        body += [page.heading("Held-out prompts: before, after"), page.cards(drawing_cards)]
    page.write_page(folder / PAGE, "What the fine-tuning has changed", body)
