"""A look at training data: an example's tokens in colour, and its images and crops on one sheet.

Each run of tokens of one kind is shown once: text as it reads, control tokens by name, discrete and
continuous ones by number. What is learnt is underlined, or between {braces} where there are no colours.
"""

import collections
import dataclasses
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from unitoken_jax.batch import NO_INDEX
from unitoken_jax.config import ModelConfig, SourceConfig
from unitoken_jax.data.index import Index, open_index
from unitoken_jax.sequence import anyres, build
from unitoken_jax.sequence.conversation import Conversation, image_source
from unitoken_jax.sequence.errors import legible, row_errors
from unitoken_jax.sequence.example import Example
from unitoken_jax.sequence.image import on_white, open_image
from unitoken_jax.sequence.layout import has_codes, has_features
from unitoken_jax.sequence.tokenizer import Tokenizer

TEXT, CONTROL, DISCRETE, CONTINUOUS = "text", "control", "discrete", "continuous"
_COLOURS = {TEXT: "37", CONTROL: "90", DISCRETE: "36", CONTINUOUS: "35"}  # ANSI: white, grey, cyan, magenta
_UNDERLINE, _PLAIN = "4", "\x1b[0m"
# On a sheet, in px: the longer side of an image, the space between images, the height of a line of words.
_SIDE, _GAP, _LINE = 192, 8, 16


@dataclasses.dataclass(frozen=True)
class Run:
    """`length` neighbouring tokens from `start` on, of one kind (TEXT, CONTROL, DISCRETE, CONTINUOUS) and all
    `learnt` (with labels) or all not. `words`: the text, the control tokens' names, or how many there are."""

    kind: str
    learnt: bool
    start: int
    length: int
    words: str


def token_kinds(example: Example, tokenizer: Tokenizer) -> np.ndarray:
    """The kind of each token, str[n]. A new-line after a row of codes or features is of the row's kind."""
    kinds = np.full(len(example.tokens), TEXT, object)
    kinds[[tokenizer.is_control(token) for token in example.tokens.tolist()]] = CONTROL
    codes = tokenizer.vocabulary.codes_of_ids
    kinds[codes[np.clip(example.tokens, 0, len(codes) - 1)] >= 0] = DISCRETE
    kinds[example.code_index != NO_INDEX] = DISCRETE
    kinds[example.image_feature_index != NO_INDEX] = CONTINUOUS
    lines = np.flatnonzero(example.tokens == tokenizer.vocabulary.new_line)
    for i in lines[lines > 0].tolist():
        if kinds[i - 1] in (DISCRETE, CONTINUOUS):
            kinds[i] = kinds[i - 1]
    return kinds


def token_runs(example: Example, tokenizer: Tokenizer) -> list[Run]:
    """The example as runs of one kind that are all learnt or all not."""
    kind, learnt = token_kinds(example, tokenizer), example.labels >= 0
    changes = np.flatnonzero((kind[1:] != kind[:-1]) | (learnt[1:] != learnt[:-1])) + 1
    runs = []
    for start, end in zip([0, *changes], [*changes, len(kind)]):
        ids = example.tokens[start:end].tolist()
        if kind[start] == TEXT:
            words = tokenizer.decode(ids)
        elif kind[start] == CONTROL:
            words = "".join(tokenizer.name(token) for token in ids)
        else:
            words = f"[{end - start} {kind[start]}]"
        runs.append(Run(kind[start], bool(learnt[start]), int(start), int(end - start), words))
    return runs


def format_runs(runs: list[Run], colour: bool) -> str:
    """One text of all runs, with ANSI colours or, without `colour`, with {braces} around what is learnt."""
    if not colour:
        return "".join("{" + run.words + "}" if run.learnt else run.words for run in runs)
    codes = [_COLOURS[run.kind] + (";" + _UNDERLINE) * run.learnt for run in runs]
    return "".join(f"\x1b[{code}m{run.words}{_PLAIN}" for code, run in zip(codes, runs))


def legend(colour: bool) -> str:
    """One line that says what the colours and marks of `format_runs` mean."""
    if not colour:
        return "[n discrete] VQ codes, [n continuous] SigLIP features, {learnt}"
    shown = [Run(kind, False, 0, 1, kind) for kind in _COLOURS] + [Run(TEXT, True, 0, 1, "learnt")]
    return " ".join(format_runs([run], True) for run in shown)


def counts(example: Example, tokenizer: Tokenizer) -> str:
    """How many tokens of each kind `example` has: "40 tokens: 9 text (3 learnt), 20 discrete, ...; 2
    crops"."""
    kind, learnt = token_kinds(example, tokenizer), example.labels >= 0
    phrases = []
    for name in _COLOURS:
        of_kind = kind == name
        if of_kind.any():
            note = f" ({int((of_kind & learnt).sum())} learnt)" if (of_kind & learnt).any() else ""
            phrases.append(f"{int(of_kind.sum())} {name}{note}")
    return f"{len(kind)} tokens: {', '.join(phrases)}; {len(example.crops)} crops"


def inspect_data(
    source: SourceConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    rows: list[int] | None,
    *,
    sheet: pathlib.Path | None = None,
    colour: bool = False,
) -> list[str]:
    """Lines about a data set (its size, its bad rows by reason) and about some of its examples.

    Args:
      source: the data set.
      model, tokenizer: what makes sequences of its conversations.
      rows: numbers of the examples, counted from 0; None: the first that can be used.
      sheet: a PNG file to write, with the images and crops of the first of them; None: none.
      colour: with ANSI colours.
    Raises ValueError for a row that is not there, and RowError for a bad one.
    """
    index = open_index(source, model, tokenizer, on_error=lambda error: None)
    lines = [*_summary(index), legend(colour)]
    if rows is None:
        rows = np.flatnonzero(index.lengths[:, 0])[:1].tolist()
    for row in rows:
        if not 0 <= row < len(index):
            raise ValueError(f"row {row} of {source.path}: it has rows 0 to {len(index) - 1}")
        conversation = index.conversation(row)
        example = build.build_example(conversation, tokenizer, model)
        lines += ["", f"row {row} ({conversation.source}): {counts(example, tokenizer)}"]
        lines += format_runs(token_runs(example, tokenizer), colour).split("\n")
        if sheet is not None and row == rows[0]:
            with row_errors(conversation.source):
                drawn = image_sheet(conversation, example, model)
            drawn.save(sheet)
            lines.append(f"images and crops: {sheet}")
    return lines


def _summary(index: Index) -> list[str]:
    tokens = index.lengths[:, 0]
    good = tokens[tokens > 0]
    lines = [f"{index.config.path}: {len(index)} rows, {len(index) - len(good)} of them bad"]
    reasons = collections.Counter(row.reason for row in index.bad())
    lines += [f"  {count} {reason}" for reason, count in sorted(reasons.items())]
    if reasons:
        lines.append(f"  each one, with file and line: {index.report}")
    if len(good):
        low, middle, high = np.percentile(good, [5, 50, 95])
        lines.append(
            f"  tokens: {good.sum():,}, a row {good.min()} to {good.max()} (5 % {low:.0f}, half "
            f"{middle:.0f}, 95 % {high:.0f}); {index.lengths[:, 2].sum():,} images with codes, "
            f"{index.lengths[:, 1].sum():,} crops"
        )
    return lines


def image_sheet(conversation: Conversation, example: Example, model: ModelConfig) -> Image.Image:
    """Every image in a line of its own: as it is, as the VQ encoder sees it, its SigLIP crops in order."""
    crops, images = iter(example.crops), iter(example.images)
    strips = []
    for turn in conversation.turns:
        for part in turn.parts:
            if isinstance(part, str):
                continue
            image = on_white(open_image(image_source(part)))
            name = legible(getattr(part, "name", "image"))
            strip = [(f"{name[-28:]} {image.width} x {image.height}", image)]
            if has_codes(turn, model):
                strip.append(("discrete", Image.fromarray(next(images))))
            if has_features(turn, model):
                count = anyres.crop_count(image.height, image.width, model.siglip, model.sequence)
                strip += [(f"crop {i}", Image.fromarray(next(crops))) for i in range(count)]
            strips.append(strip)
    width = max((len(strip) for strip in strips), default=1) * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, max(1, len(strips)) * (_SIDE + _LINE + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for line, strip in enumerate(strips):
        top = _GAP + line * (_SIDE + _LINE + _GAP)
        for column, (words, image) in enumerate(strip):
            left = _GAP + column * (_SIDE + _GAP)
            draw.text((left, top), words, fill="black")
            scale = _SIDE / max(image.size)
            fitted = [max(1, round(side * scale)) for side in image.size]
            sheet.paste(image.resize(fitted), (left, top + _LINE))
    if not strips:
        draw.text((_GAP, _GAP), "no images", fill="black")
    return sheet
