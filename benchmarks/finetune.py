"""What fine-tuning with nothing but defaults teaches the small model in the package, and what it forgets.

    python benchmarks/finetune.py --task word|object [--images 300] [--seed 0] [--out DIR] [-- OPTIONS]

"word": a new word for a look. Drawings of rings (no ring is in what the model knows) in its four colours,
with questions that are answered "a wug". "object": a new object to draw. Captions of a "wug", a plus of five
squares in one colour, on the model's grid; a checker of pixels alone judges what is drawn. OPTIONS go to
`unitoken finetune`.

Held-out accuracy, what the run took, and the small world's own held-out questions before and after (General
and TextRead, 40 a kind) go to OUT/result.json.
"""

import argparse
import json
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image, ImageDraw

from unitoken_jax import UniToken
from unitoken_jax.cli import compile_cache
from unitoken_jax.quickstart.evaluate import answer_questions
from unitoken_jax.scenes.dataset import DatasetSettings, write_dataset
from unitoken_jax.scenes.questions import score_answers
from unitoken_jax.scenes.scene import BACKGROUND, CELL, COLOURS, GRID, SceneObject, draw

WORD = "wug"
GROUNDS = ((255, 255, 255), (250, 240, 220), (20, 20, 20), (128, 128, 128), (160, 120, 200))
QUESTIONS = ("what is this?", "what do you see?", "what is in the image?", "what shape is it?")
PROMPTS = ("a {colour} wug", "draw a {colour} wug", "one {colour} wug")
HELD_OUT = 60  # drawings or prompts


def draw_ring(rng: random.Random) -> Image.Image:
    """A ring of one colour anywhere on a plain ground, 120 to 400 pixels a side."""
    side = rng.randint(120, 400)
    image = Image.new("RGB", (side * 2, side * 2), rng.choice(GROUNDS))
    radius = rng.uniform(0.2, 0.4) * side * 2
    x, y = (rng.uniform(radius, side * 2 - radius) for _ in range(2))
    width = round(radius * rng.uniform(0.25, 0.4))
    colour = COLOURS[rng.choice(list(COLOURS))]
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), None, colour, width)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def draw_plus(colour: str) -> Image.Image:
    """Squares of one colour in the five cells of a plus, as the model's image tokenizer can write it."""
    scene = tuple(SceneObject(cell, "square", colour) for cell in (1, 3, 4, 5, 7))
    return Image.fromarray(draw(scene, random.Random(0), "train"))


def is_plus(image: Image.Image, colour: str) -> bool:
    """Whether the plus's cells are of the colour, and no other: by their mean colour."""
    cells = np.asarray(image, float).reshape(GRID, CELL, GRID, CELL, 3).mean((1, 3))
    known = {**COLOURS, "ground": BACKGROUND}
    names = [
        [
            min(known, key=lambda name, cell=cell: np.linalg.norm(np.subtract(known[name], cell)))
            for cell in row
        ]
        for row in cells
    ]
    expected = [["ground", colour, "ground"], [colour, colour, colour], ["ground", colour, "ground"]]
    return names == expected


def write_data(folder: pathlib.Path, task: str, number: int, rng: random.Random) -> None:
    """`number` images and captions.csv, as a user would have them."""
    folder.mkdir(parents=True)
    lines = ["file_name,question,answer" if task == "word" else "file_name,text"]
    for i in range(number):
        if task == "word":
            draw_ring(rng).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{rng.choice(QUESTIONS)},a {WORD}")
        else:
            colour = rng.choice(list(COLOURS))
            draw_plus(colour).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{rng.choice(PROMPTS).format(colour=colour)}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def held_out_score(model: UniToken, task: str, rng: random.Random) -> float:
    """The share of new drawings that are called by the word, or of new prompts that are drawn right."""
    if task == "word":
        asked = [[draw_ring(rng), rng.choice(QUESTIONS)] for _ in range(HELD_OUT)]
        return float(np.mean([WORD in answer.split() for answer in model.answer(asked)]))
    colours = [rng.choice(list(COLOURS)) for _ in range(HELD_OUT)]
    prompts = [rng.choice(PROMPTS).format(colour=colour) for colour in colours]
    drawn = model.generate(prompts, seed=rng.randrange(1000))
    return float(np.mean([is_plus(image, colour) for image, colour in zip(drawn, colours)]))


def old_scores(model: UniToken, folder: pathlib.Path) -> dict:
    """The small world's held-out questions: General, TextRead, and by kind."""
    sizes = dict.fromkeys(("captions", "understanding", "generation", "instruct"), 1)
    settings = DatasetSettings(seed=0, **{f"train_{name}": size for name, size in sizes.items()})
    return score_answers(answer_questions(model, write_dataset(folder, settings)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("word", "object"), required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="finetune_bench", type=pathlib.Path)
    parser.add_argument("options", nargs="*", help="of `unitoken finetune`")
    arguments = parser.parse_args()
    compile_cache.enable()
    run = arguments.out / f"{arguments.task}{arguments.seed}"
    shutil.rmtree(run, ignore_errors=True)
    data = run / "data"
    write_data(data, arguments.task, arguments.images, random.Random(f"train {arguments.seed}"))
    command = [
        sys.executable,
        "-m",
        "unitoken_jax",
        "finetune",
        "--data",
        str(data),
        "--out",
        str(run / "tuned"),
    ]
    start = time.perf_counter()
    subprocess.run([*command, "--seed", str(arguments.seed), *arguments.options], check=True)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    base = UniToken.load()
    tuned = base.with_adapter(run / "tuned")
    result: dict = {
        "task": arguments.task,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    for name, model in (("before", base), ("after", tuned)):
        held_out = held_out_score(model, arguments.task, random.Random(f"held out {arguments.seed}"))
        old = old_scores(model, arguments.out / "old")
        result[name] = {"held_out": held_out, **{key: old[key] for key in ("general", "textread", "kinds")}}
    (run / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
