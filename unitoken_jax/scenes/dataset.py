"""Writes the quickstart's data set: PNG files, conversations in the public format, held-out tests.

dataset.json                      settings; present only when the data set is complete
train_captions.jsonl              images and what is in them, object by object
train_understanding.jsonl         conversations of several questions about one image
train_generation.jsonl            prompts with the image to draw
train_instruct.jsonl              both, with more of what is hard: counts, places, attribution (stage III)
train_scenes.jsonl                the objects in each image that is asked about: image, objects
held_out_questions.jsonl          image, question, answer, kind, set
held_out_prompts.jsonl            category, prompt, include (see prompts.Requirement)
images/<subset>/000000.png
"""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unitoken_jax.scenes import questions
from unitoken_jax.scenes.prompts import (
    CATEGORIES,
    RELATED,
    SCENE,
    Requirement,
    random_pair,
    random_prompt,
    vary_prompt,
)
from unitoken_jax.scenes.scene import Scene, SceneObject, Split, draw, random_scene
from unitoken_jax.scenes.texture import texture
from unitoken_jax.scenes.variation import draw_varied
from unitoken_jax.scenes.wording import in_benchmark_words, vary_wording
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.storage.atomic import atomic_folder

IMAGE = "<|image|>"

_FORMAT = 3
_MANY_EXAMPLES = 2000  # from so many on, processes are worth starting
# (turns, scene, image) of an example's random number generator and its number.
_MakeExample = Callable[[random.Random, int], tuple[list[str], Scene, np.ndarray]]
# Kinds of training questions and their weights. A model learns late to find an object by its looks: such
# questions are more frequent.
_QUESTIONS = dict.fromkeys(questions.QUESTIONS, 1.0) | {
    "caption": 0.3,
    "read caption": 0.3,
    "count": 2.0,
    "position": 2.0,
    "positions": 3.0,
    "relation": 3.0,
    "exists": 3.0,
}
_IN_BENCHMARK_WORDS = 0.25  # share of training questions put as a benchmark puts them
_MOST_IN_BENCHMARK_WORDS = 2  # of a conversation: they are long
_NOTHING = 0.08  # share of training images that show nothing of the small world
_ON_GRID = 0.25  # share of images with objects that are as the model draws them
_HARD_QUESTIONS = _QUESTIONS | {"position": 4.0, "relation": 4.0}
# Numbers of objects in a training scene that questions are about; one is drawn, all equally likely.
_OBJECTS = (1, 1, 2, 2, 3, 3)
_EVEN_PROMPTS = {SCENE: 2.0, RELATED: 1.0, **dict.fromkeys(CATEGORIES, 1.0)}
_HARD_PROMPTS = {
    SCENE: 1.0,
    RELATED: 1.0,
    **dict.fromkeys(CATEGORIES, 1.0),
    "counting": 2.0,
    "position": 2.0,
    "attribution": 2.0,
}


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """Sizes of a data set. Equal settings give equal bytes; a larger size keeps a smaller one's examples."""

    seed: int = 0
    train_captions: int = 6000  # conversations, each with an image of its own, as in all subsets
    train_understanding: int = 6000
    train_generation: int = 12000
    train_instruct: int = 4000  # half understanding, half generation
    questions_per_kind: int = 40  # held out
    prompts_per_category: int = 40  # held out


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A complete data set on disk."""

    root: Path
    settings: DatasetSettings

    @property
    def train_captions(self) -> Path:
        return self.root / "train_captions.jsonl"

    @property
    def train_understanding(self) -> Path:
        return self.root / "train_understanding.jsonl"

    @property
    def train_generation(self) -> Path:
        return self.root / "train_generation.jsonl"

    @property
    def train_instruct(self) -> Path:
        return self.root / "train_instruct.jsonl"

    def drawn_images(self) -> list[Path]:
        """Paths of the training images that the model learns to draw, uint8 RGB of scene.SIZE px a side."""
        return sorted((self.root / "images/generation").glob("*.png"))

    def train_scenes(self) -> Iterator[tuple[Path, Scene]]:
        """The training images that are asked about, of all sizes, and what is in them."""
        for row in _read_jsonl(self.root / "train_scenes.jsonl"):
            yield self.root / row["image"], tuple(SceneObject(*values) for values in row["objects"])

    def held_out_questions(self) -> list[dict]:
        """Rows with `image` (relative to root), `question`, `answer`, `kind` and `set`."""
        return list(_read_jsonl(self.root / "held_out_questions.jsonl"))

    def held_out_prompts(self) -> list[Requirement]:
        return [Requirement.from_json(row) for row in _read_jsonl(self.root / "held_out_prompts.jsonl")]

    def train_texts(self) -> Iterator[str]:
        """All texts of the training conversations without image marks, e.g. to train a tokenizer on."""
        for subset in _TRAIN_SUBSETS:
            for row in _read_jsonl(self.root / f"train_{subset}.jsonl"):
                for turn in row["conversations"]:
                    if text := turn["value"].replace(IMAGE, ""):
                        yield text


def write_dataset(
    out: str | os.PathLike,
    settings: DatasetSettings = DatasetSettings(),
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Writes the data set to the directory `out`, which appears only when it is complete.

    Does nothing where it is already there with the same settings. `progress(done, total)` is called as
    images are written. Raises ValueError where `out` holds anything else.
    """
    out = Path(out)
    dataset = Dataset(out, settings)
    if _is_complete(out, settings):
        return dataset
    with atomic_folder(out) as folder:  # what may be at `out` is empty, as _is_complete has checked
        _Writer(folder, settings, progress).write_all()
        header = json.dumps(_header(settings), indent=1) + "\n"
        (folder / "dataset.json").write_text(header, encoding="utf-8")
    return dataset


def _header(settings: DatasetSettings) -> dict:
    return {"format": _FORMAT, **dataclasses.asdict(settings)}


def _is_complete(out: Path, settings: DatasetSettings) -> bool:
    """Whether the data set of `settings` is there; False for an empty or missing folder.

    Raises ValueError for a folder that holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the data set needs a directory: give another path.")
    if not out.exists() or not any(out.iterdir()):
        return False
    path = out / "dataset.json"
    if not path.exists():
        raise ValueError(f"{out} holds other files and no dataset.json: give an empty or a new directory.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete {out} or give another directory.") from None
    expected = _header(settings)
    if stored == expected:
        return True
    stored = stored if isinstance(stored, dict) else {}
    different = [
        f"{key} {stored.get(key)} (wanted {expected.get(key)})"
        for key in sorted(stored.keys() | expected.keys())
        if stored.get(key) != expected.get(key)
    ]
    raise ValueError(
        f"{path} describes another data set: {', '.join(different)}. Delete {out} or give another directory."
    )


def _read_jsonl(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


class _Writer:
    """Writes the files of one data set.

    Every example has a random number generator of its own, so that its content does not depend on the sizes.
    """

    def __init__(self, root: Path, settings: DatasetSettings, progress: Callable[[int, int], None] | None):
        self.root = root
        self.settings = settings
        self.progress = progress
        self.done = 0
        self.total = sum(getattr(settings, f"train_{subset}") for subset in _TRAIN_SUBSETS)
        self.total += settings.questions_per_kind * len(questions.QUESTIONS)

    def write_all(self) -> None:
        scenes: list[dict] = []
        sizes = {subset: getattr(self.settings, f"train_{subset}") for subset in _TRAIN_SUBSETS}
        with _mapping(sum(sizes.values())) as map_numbers:
            for subset, number in sizes.items():
                write = functools.partial(_write_example, self.root, self.settings.seed, subset)
                (self.root / "images" / subset).mkdir(parents=True, exist_ok=True)
                self._write_train(subset, map_numbers(write, range(number)), scenes)
        self._write_rows("train_scenes.jsonl", scenes)
        self._write_questions()
        self._write_prompts()

    def _write_train(self, subset: str, examples: Iterable[tuple[dict, Scene]], scenes: list[dict]) -> None:
        """Writes a subset's conversations as their images are written; adds to `scenes` what is in those that
        are asked about."""
        rows = []
        for row, scene in examples:
            self._count_image()
            rows.append(row)
            if row["conversations"][-1]["value"] != IMAGE:
                objects = [[obj.cell, obj.kind, obj.colour] for obj in scene]
                scenes.append({"image": row["image"][0], "objects": objects})
        self._write_rows(f"train_{subset}.jsonl", rows)

    def _write_questions(self) -> None:
        """Writes the held-out questions with their images."""
        rows: list[dict] = []
        (self.root / "images/held_out").mkdir(parents=True, exist_ok=True)
        for kind in questions.QUESTIONS:
            for number in range(self.settings.questions_per_kind):
                rng = _example_rng(self.settings.seed, kind, number)
                question, scene = held_out_question(kind, rng)
                image = _save(self.root, "held_out", len(rows), picture(scene, rng, "held_out"))
                self._count_image()
                row = {"image": image, "question": question.text, "answer": question.answer}
                rows.append(row | {"kind": kind, "set": question.set})
        self._write_rows("held_out_questions.jsonl", rows)

    def _write_prompts(self) -> None:
        """Writes the held-out prompts."""
        pairs = [
            (name, number) for name in CATEGORIES for number in range(self.settings.prompts_per_category)
        ]
        seed = self.settings.seed
        prompts = [
            random_prompt(name, _example_rng(seed, name, number), "held_out") for name, number in pairs
        ]
        self._write_rows("held_out_prompts.jsonl", [prompt.to_json() for prompt in prompts])

    def _write_rows(self, name: str, rows: list[dict]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _count_image(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)


@contextlib.contextmanager
def _mapping(number: int) -> Iterator[Callable]:
    """`map`, or where there are many examples, one that works in several processes."""
    processes = os.cpu_count() or 1
    if number < _MANY_EXAMPLES or processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield functools.partial(pool.imap, chunksize=64)


def _example_rng(seed: int, purpose: str, number: int) -> random.Random:
    """The generator of example `number` of a subset, kind of question or category."""
    return random.Random(f"{seed} {purpose} {number}")


def _write_example(root: Path, seed: int, subset: str, index: int) -> tuple[dict, Scene]:
    """Writes the image of a training example; returns its row and scene."""
    turns, scene, pixels = _TRAIN_SUBSETS[subset](_example_rng(seed, subset, index), index)
    values = [{"from": ("human", "gpt")[turn % 2], "value": text} for turn, text in enumerate(turns)]
    return {"conversations": values, "image": [_save(root, subset, index, pixels)]}, scene


def _save(root: Path, folder_name: str, index: int, image: np.ndarray) -> str:
    """Saves uint8[h, w, 3] and returns its path relative to the data set."""
    name = f"images/{folder_name}/{index:06d}.png"
    Image.fromarray(image).save(root / name, compress_level=1)
    return name


def picture(scene: Scene, rng: random.Random, split: Split) -> np.ndarray:
    """An image of the scene to ask about, uint8[h, w, 3]: one as the model draws them, or one in any style.

    Without objects, something that looks like a photograph, or a plain ground.
    """
    if not scene and rng.random() < 0.75:
        return texture(rng)
    return draw(scene, rng, split) if rng.random() < _ON_GRID else draw_varied(scene, rng, split)


def _train_scene(rng: random.Random) -> Scene:
    """A scene that questions are about; sometimes without any object."""
    return () if rng.random() < _NOTHING else random_scene(rng, "train", rng.choice(_OBJECTS))


def _captions(rng: random.Random, _=None) -> tuple[list[str], Scene, np.ndarray]:
    """Turns (request, caption) and the scene. A caption names every property of every object."""
    scene = _train_scene(rng)
    asked = [question for kind in questions.CAPTIONS if (question := questions.ask(scene, kind, rng))]
    qa_pairs = asked or [questions.Question("nothing", questions.describe(rng), questions.NOTHING)]
    return _turns(qa_pairs, rng), scene, picture(scene, rng, "train")


def _understanding(rng: random.Random, weights: dict[str, float]) -> tuple[list[str], Scene, np.ndarray]:
    """Turns (question, answer, ...) about one image: a caption alone, or 5 to 8 questions."""
    if rng.random() < 0.15:
        return _captions(rng)
    scene = _train_scene(rng)
    weights = weights if scene else {"nothing": 1.0}
    qa_pairs = questions.ask_several(scene, rng.randint(5, 8), rng, weights)
    # Last, as a caption gives the other answers away.
    qa_pairs.sort(key=lambda question: question.kind in questions.CAPTIONS)
    return _turns(qa_pairs, rng), scene, picture(scene, rng, "train")


def _turns(qa_pairs: list[questions.Question], rng: random.Random) -> list[str]:
    """Question, answer, question, ...; the image stands before or after the first question."""
    turns: list[str] = []
    long = 0
    for question in qa_pairs:
        worded = dataclasses.replace(question, text=vary_wording(question.text, rng))
        if long < _MOST_IN_BENCHMARK_WORDS and rng.random() < _IN_BENCHMARK_WORDS:
            worded = in_benchmark_words(worded, rng)
            long += 1
        turns += [worded.text, worded.answer]
    turns[0] = IMAGE + turns[0] if rng.random() < 0.85 else turns[0] + IMAGE
    return turns


def _generation(rng: random.Random, weights: dict[str, float]) -> tuple[list[str], Scene, np.ndarray]:
    """Turns (request, image), the scene to draw and its drawing."""
    category = rng.choices(list(weights), list(weights.values()))[0]
    requirement, scene = random_pair(category, rng, "train")
    request = TEXT_TO_IMAGE_INSTRUCTION + vary_prompt(requirement.prompt, rng)
    return [request, IMAGE], scene, draw(scene, rng, "train")


def _instruct(rng: random.Random, index: int) -> tuple[list[str], Scene, np.ndarray]:
    """Examples that weigh what is hard: drawing and questions by turns."""
    if index % 2:
        return _generation(rng, _HARD_PROMPTS)
    return _understanding(rng, _HARD_QUESTIONS)


_TRAIN_SUBSETS: dict[str, _MakeExample] = {
    "captions": _captions,
    "understanding": lambda rng, _: _understanding(rng, _QUESTIONS),
    "generation": lambda rng, _: _generation(rng, _EVEN_PROMPTS),
    "instruct": _instruct,
}


def held_out_question(kind: str, rng: random.Random) -> tuple[questions.Question, Scene]:
    """A question of `kind` about a held-out scene of 1 to 3 objects (2 or 3 for a relation of two)."""
    count = rng.randint(2 if kind == "relation" else 1, 3)
    while True:
        scene = () if kind == "nothing" else random_scene(rng, "held_out", count)
        if question := questions.ask(scene, kind, rng):
            text = vary_wording(question.text, rng)
            return dataclasses.replace(question, text=text), scene
