"""What a model of the small world makes of what people hand it: plain drawings of one shape, and photographs.

    python benchmarks/plain_drawings.py --model MODEL [--number 200] [--seed 0] [--out plain_drawings]

draws with Pillow, and with nothing of the package: 200 to 900 pixels a side, one shape in one colour,
anywhere, on white, cream, black, grey or violet, two in five saved as JPEG, each asked about in three ways.
Counted are answers whose words name the right shape or colour and no other. The failures are in
`--out`/failures.png.

    pip install scikit-image pooch
    python benchmarks/plain_drawings.py --model MODEL --photographs [--seed 0] [--out photographs]

asks what is in the photographs that scikit-image's package contains (whole, and two random parts of each),
and counts the answers that say that there is nothing the model knows.
"""

import argparse
import collections
import dataclasses
import io
import itertools
import math
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": ((255, 0, 0), (220, 20, 60), (200, 30, 30)),
    "green": ((0, 128, 0), (34, 139, 34), (0, 200, 0)),
    "blue": ((0, 0, 255), (30, 60, 220), (65, 105, 225)),
    "yellow": ((255, 255, 0), (255, 215, 0), (240, 220, 40)),
}
GROUNDS = {
    "white": ((255, 255, 255),),
    "cream": ((255, 253, 208), (250, 240, 220)),
    "black": ((0, 0, 0),),
    "grey": ((128, 128, 128), (211, 211, 211)),
    "violet": ((238, 130, 238), (127, 63, 191)),
}
SIDES = 200, 900  # pixels
JPEG_SHARE = 0.4
SHAPE_QUESTION, COLOUR_QUESTION = "what shape is this?", "what colour is the shape?"
DRAWING_QUESTION, PHOTOGRAPH_QUESTION = "what is in the image?", "describe the image"
NOTHING = "nothing that i know"
# Functions of skimage.data whose files are in its package, without those that show writing.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket"),
)
PARTS = 2  # of each photograph, besides the whole
Answer = Callable[[Sequence[Sequence]], Sequence[str]]  # [[text or image, ...], ...] -> answers


@dataclasses.dataclass(frozen=True)
class Drawing:
    """`image` shows one `shape`, whose colour is called `colour`, on a ground whose colour is `ground`."""

    image: Image.Image
    shape: str
    colour: str
    ground: str
    format: str

    @property
    def size(self) -> str:
        """How large the image is, in words for the table."""
        side = min(self.image.size)
        return "200 to 399 px" if side < 400 else "400 to 649 px" if side < 650 else "650 to 900 px"


def draw(rng: random.Random) -> Drawing:
    """One plain drawing."""
    shape, colour, ground = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(GROUNDS))
    width = height = rng.randint(*SIDES)
    if rng.random() < 0.5:
        height = min(max(round(width * rng.uniform(0.5, 2)), SIDES[0]), SIDES[1])
    image = Image.new("RGB", (width, height), rng.choice(GROUNDS[ground]))
    side = min(width, height) * rng.uniform(0.25, 0.7)
    left, top = rng.uniform(0.02, 0.98) * (width - side), rng.uniform(0.02, 0.98) * (height - side)
    _paint(ImageDraw.Draw(image), shape, rng.choice(COLOURS[colour]), (left, top), side, rng)
    if rng.random() >= JPEG_SHARE:
        return Drawing(image, shape, colour, ground, "as drawn")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(60, 95))
    return Drawing(Image.open(file), shape, colour, ground, "JPEG")


def _paint(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    ink: tuple[int, int, int],
    corner: tuple[float, float],
    side: float,
    rng: random.Random,
) -> None:
    """Paints `shape` into the square of `side` pixels whose top left corner is `corner` (x, y)."""
    left, top = corner
    right, bottom = left + side, top + side
    if shape == "circle":
        canvas.ellipse((left, top, right, bottom), ink)
    elif shape == "square":
        canvas.rectangle((left, top, right, bottom), ink)
    elif shape == "triangle":
        canvas.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], ink)
    else:
        arm = side * rng.uniform(0.2, 0.36)
        inner = (side - arm) / 2
        canvas.rectangle((left + inner, top, right - inner, bottom), ink)
        canvas.rectangle((left, top + inner, right, bottom - inner), ink)


def names_only(answer: str, right: str, words: Iterable[str]) -> bool:
    """Whether `right` is the one of `words` that `answer` has among its own, as often as it likes."""
    said = set(answer.lower().replace(".", " ").replace(",", " ").split())
    return said & set(words) == {right}


def judge_drawings(answer: Answer, drawings: Sequence[Drawing]) -> list[dict]:
    """Asks about each drawing in three ways: {"drawing", "caption", "shape", "colour" (the answers), and what
    of them is right: "both", "shape right", "colour right", "one thing"}."""
    answers = {
        name: answer([[drawing.image, question] for drawing in drawings])
        for name, question in (
            ("caption", DRAWING_QUESTION),
            ("shape", SHAPE_QUESTION),
            ("colour", COLOUR_QUESTION),
        )
    }
    rows = []
    for number, drawing in enumerate(drawings):
        caption, shape, colour = (answers[name][number] for name in ("caption", "shape", "colour"))
        both = names_only(caption, drawing.shape, SHAPES) and names_only(caption, drawing.colour, COLOURS)
        rows.append(
            {
                "drawing": drawing,
                "caption": caption,
                "shape": shape,
                "colour": colour,
                "both": both,
                "one thing": both and " and " not in caption,
                "shape right": names_only(shape, drawing.shape, SHAPES),
                "colour right": names_only(colour, drawing.colour, COLOURS),
            }
        )
    return rows


COUNTED = ("both", "one thing", "shape right", "colour right")


def table(rows: Sequence[dict]) -> str:
    """Shares of what COUNTED names, of all drawings and of each kind of them, as a Markdown table."""
    groups: dict[str, list[dict]] = {"all": list(rows)}
    for attribute in ("shape", "colour", "ground", "size", "format"):
        by_value = collections.defaultdict(list)
        for row in rows:
            by_value[getattr(row["drawing"], attribute)].append(row)
        groups |= {f"{attribute}: {value}": by_value[value] for value in sorted(by_value)}
    header = ("drawings", "number", "shape and colour", "and nothing else", "shape asked", "colour asked")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, group in groups.items():
        shares = [sum(row[counted] for row in group) / len(group) for counted in COUNTED]
        cells = [name, str(len(group)), *(f"{share:.3f}" for share in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def contact_sheet(cards: Sequence[tuple[Image.Image, str]], columns: int = 6, side: int = 200) -> Image.Image:
    """Images with lines of text below them, as many in a row as `columns`."""
    height = side + 60
    rows = max(1, math.ceil(len(cards) / columns))
    sheet = Image.new("RGB", (columns * (side + 10), rows * height), "white")
    canvas = ImageDraw.Draw(sheet)
    for (image, text), (row, column) in zip(cards, itertools.product(range(rows), range(columns))):
        small = image.convert("RGB")
        small.thumbnail((side, side))
        place = column * (side + 10), row * height
        sheet.paste(small, place)
        canvas.multiline_text((place[0], place[1] + side + 2), text, fill="black")
    return sheet


def photographs(rng: random.Random) -> list[tuple[str, Image.Image]]:
    """(name, image) of each of scikit-image's photographs, whole and in PARTS random parts."""
    try:
        from skimage import data
    except ImportError as error:
        raise SystemExit(
            f"{error}: the photographs are scikit-image's: pip install scikit-image pooch"
        ) from None
    found = []
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        found.append((name, image))
        for part in range(PARTS):
            share = rng.uniform(0.4, 0.8)
            width, height = (int(share * side) for side in image.size)
            left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
            found.append((f"{name}, part {part + 1}", image.crop((left, top, left + width, top + height))))
    return found


def main(argv: Sequence[str] | None = None, answer: Answer | None = None) -> int:
    """Prints the table; `answer` stands for the model in tests."""
    parser = argparse.ArgumentParser(
        description="Plain drawings and photographs, as people hand them to a model."
    )
    parser.add_argument("--model", help="model directory (default: the small model in the package)")
    parser.add_argument("--photographs", action="store_true", help="scikit-image's photographs, not drawings")
    parser.add_argument("--number", type=int, default=200, help="drawings (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=pathlib.Path, help="default: plain_drawings, or photographs")
    arguments = parser.parse_args(argv)
    out = arguments.out or pathlib.Path("photographs" if arguments.photographs else "plain_drawings")
    rng = random.Random(arguments.seed)
    images = photographs(rng) if arguments.photographs else [draw(rng) for _ in range(arguments.number)]
    if answer is None:
        from unitoken_jax import UniToken

        model = UniToken.load(arguments.model) if arguments.model else UniToken.load()
        answer = lambda conversations: model.answer(conversations, batch=arguments.batch)  # noqa: E731
    failures = _photographs(images, answer) if arguments.photographs else _drawings(images, answer)
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(failures).save(out / "failures.png")
    print(f"{len(failures)} failures: {out / 'failures.png'}")
    return 0


def _drawings(drawings: Sequence[Drawing], answer: Answer) -> list[tuple[Image.Image, str]]:
    """Prints the table of drawings; returns those with a wrong answer, for the contact sheet."""
    rows = judge_drawings(answer, drawings)
    print(table(rows))
    return [
        (row["drawing"].image, "\n".join(_wrapped(row[name]) for name in ("caption", "shape", "colour")))
        for row in rows
        if not all(row[counted] for counted in COUNTED)
    ]


def _photographs(images: Sequence[tuple[str, Image.Image]], answer: Answer) -> list[tuple[Image.Image, str]]:
    """Prints the share of photographs in which nothing is seen; returns the others, for the contact sheet."""
    answers = answer([[image, PHOTOGRAPH_QUESTION] for _, image in images])
    right = [said.lower().strip(" .") == NOTHING for said in answers]
    whole = right[:: PARTS + 1]
    print(f"{NOTHING!r} is said of {sum(whole)} of {len(whole)} photographs,")
    print(f"of {sum(right)} of {len(right)} with parts of them: {sum(right) / len(right):.3f}")
    return [
        (image, f"{name}\n{_wrapped(said)}")
        for (name, image), said, ok in zip(images, answers, right)
        if not ok
    ]


def _wrapped(text: str, width: int = 34) -> str:
    """The beginning of `text`, short enough for a card."""
    return text if len(text) <= width else text[: width - 3] + "..."


if __name__ == "__main__":
    raise SystemExit(main())
