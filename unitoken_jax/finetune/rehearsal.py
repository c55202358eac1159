"""What a model knows already, as examples to learn beside the new ones, so that it does not forget it.

A few hundred examples of one thing make a model forget the others: whatever it is asked it answers with the
new word. A model of the small world says so in its manifest (`scenes.MANIFEST`), and rehearses scenes. Any
other rehearses its own drawings and answers: it draws images without a prompt, describes them, and answers
about them the questions that the new data asks, and plain ones; its answers, and its drawings with its
descriptions, are what is learnt (self-distillation; for one subject DreamBooth does so with drawings, arXiv
2208.12242). Its drawings all look alike, and what people hand it does not: most are put on another ground,
enlarged and moved before they are asked about.

    rehearsal/rehearsal.jsonl    conversations to learn; held_out.jsonl has those about one image in twenty
    rehearsal/images/            what they are about
"""

import json
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from unitoken_jax.config import ModelConfig
from unitoken_jax.data.image_folder import DESCRIBE_QUESTION
from unitoken_jax.generate import image
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.generate.text import answer
from unitoken_jax.scenes import MANIFEST
from unitoken_jax.scenes.dataset import DatasetSettings, write_dataset
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION, example_size
from unitoken_jax.sequence.conversation import parse_conversation
from unitoken_jax.sequence.example import ExampleSize
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_folder

FOLDER, FILE, HELD_OUT = "rehearsal", "rehearsal.jsonl", "held_out.jsonl"
HELD_OUT_ONE_IN = 20  # images; with fewer, none is held out
DRAWINGS, SCENE_IMAGES = 600, 3000  # unless the user says otherwise; scenes are quickly made
SCENE_TOKENS = 320  # of a scene's longest conversation, as in the quickstart
MOST_CODES = 64  # of an image, up to which a CPU draws so many in seconds
MAX_TOKENS = 64  # of an answer
DESCRIBE = (
    DESCRIBE_QUESTION,
    "describe this picture",
    "what is in this image?",
    "what does the photo show?",
    "what can you see in the picture?",
    "what do you see?",
)
QUESTIONS = (
    "what is this?",
    "what colour is it?",
    "what shape is it?",
    "how many things are there?",
    "where is it?",
    "what is written there?",
    "is there a person in the image?",
)
ASKED = 2  # questions about each drawing, besides its description
# Guidance moves the choice of codes from that without a prompt to that with it; so little leaves it there.
_UNPROMPTED = 1e-6


def write_rehearsal(
    model: Runtime, folder: pathlib.Path, number: int, questions: Sequence[str], seed: int
) -> None:
    """Writes `folder`/rehearsal, of `number` images, unless it is there already.

    Args:
        model: the one that is to keep what it knows.
        folder: the run's directory.
        number: of images.
        questions: those of the new data.
        seed: of images, and of what is asked about which.
    """
    if (folder / FOLDER).exists():
        return
    with atomic_folder(folder / FOLDER) as staged:
        if _knows_scenes(model.manifest):
            rows = _scenes(staged, number, seed)
        else:
            rows = _own_answers(model, staged, number, questions, seed)
        lines: dict[str, list[str]] = {FILE: [], HELD_OUT: []}
        for i, row in rows:
            side = HELD_OUT if i % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN - 1 else FILE
            lines[side].append(json.dumps(row, ensure_ascii=False) + "\n")
        for name, texts in lines.items():
            (staged / name).write_text("".join(texts), encoding="utf-8")


def _scenes(folder: pathlib.Path, number: int, seed: int) -> Iterator[tuple[int, dict]]:
    """(number of an image, a conversation about it) of `number` scenes: two thirds are asked about, the
    others drawn. The images go into `folder`."""
    drawn = number // 3
    settings = DatasetSettings(
        seed=seed,
        train_captions=0,
        train_understanding=number - drawn,
        train_generation=drawn,
        train_instruct=0,
        questions_per_kind=0,
        prompts_per_category=0,
    )
    dataset = write_dataset(folder / "images", settings)
    i = 0
    for path in (dataset.train_understanding, dataset.train_generation):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield i, row | {"image": [f"images/{image}" for image in row["image"]]}
            i += 1


def _own_answers(
    model: Runtime, folder: pathlib.Path, number: int, questions: Sequence[str], seed: int
) -> Iterator[tuple[int, dict]]:
    """As `_scenes`, of `number` drawings of the model's own and its own answers."""
    rng = random.Random(seed)
    # Different prompts are different random streams; without guidance towards them they say nothing.
    drawn = image.draw(model, [str(i) for i in range(number)], seed=seed, guidance=_UNPROMPTED)
    varied = [vary(result.image, rng) for result in drawn]
    asked = [
        (i, question)
        for i in range(number)
        for question in (rng.choice(DESCRIBE), *rng.sample([*QUESTIONS, *questions], ASKED))
    ]
    conversations = [[varied[i], question] for i, question in asked]
    answers = answer(model, conversations, max_tokens=_max_tokens(model.config))
    (folder / "images").mkdir()
    for i, image_of_it in enumerate(varied):
        image_of_it.save(folder / "images" / f"{i}.png")
    for (i, question), reply in zip(asked, answers):
        yield i, _conversation(i, f"<|image|>{question}", reply.text)
        if question in DESCRIBE and varied[i] is drawn[i].image:
            yield i, _conversation(i, f"{TEXT_TO_IMAGE_INSTRUCTION}{reply.text}", "<|image|>")


def vary(drawing: Image.Image, rng: random.Random) -> Image.Image:
    """`drawing` as somebody else could have made it: one in four is left as it is, the others are enlarged,
    on another ground, within more of it, or cut."""
    if rng.random() < 0.25:
        return drawing
    pixels = np.asarray(drawing.convert("RGB"), np.float32)
    colours, counts = np.unique(pixels.reshape(-1, 3) // 8, axis=0, return_counts=True)
    ground = colours[counts.argmax()] * 8 + 4  # the most frequent colour
    distance = np.linalg.norm(pixels - ground, axis=-1, keepdims=True)
    share = np.clip(distance / max(distance.max() * 0.6, 1.0), 0, 1)  # of what is drawn in each pixel
    new_ground = np.array([rng.choice((rng.uniform(0, 255), 0.0, 255.0)) for _ in range(3)])
    if rng.random() < 0.5:
        new_ground[:] = new_ground[0]  # grey, black, white
    changed = Image.fromarray((share * pixels + (1 - share) * new_ground).astype(np.uint8))
    side = rng.randint(96, 384)
    inner = max(round(side * rng.choice((1.0, rng.uniform(0.4, 1.0), rng.uniform(1.0, 1.6)))), 8)
    scaled = changed.resize((inner, inner), rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC)))
    canvas = Image.new("RGB", (side, side), tuple(int(value) for value in new_ground))
    low, high = sorted((0, side - inner))
    canvas.paste(scaled, (rng.randint(low, high), rng.randint(low, high)))
    return canvas


def default_images(config: ModelConfig, manifest: Mapping[str, Any], params: Mapping[str, Any]) -> int:
    """How many images a rehearsal has where nothing is said, of a model with this manifest and this tree of
    parameters: none where it cannot draw, or could not in a reasonable time."""
    if _knows_scenes(manifest):
        return SCENE_IMAGES
    height, width = config.sequence.image_size
    codes = height * width // config.vq.stride**2
    can = {"encoder", "decoder"} <= set(params.get("vqgan", {}))
    quick = codes <= MOST_CODES or jax.default_backend() != "cpu"
    return DRAWINGS if can and quick else 0


def largest_example(config: ModelConfig, tokenizer: Tokenizer, manifest: Mapping[str, Any]) -> ExampleSize:
    """What the longest example of a rehearsal takes of a row, about: one of its images, a question and an
    answer of as many tokens as it may have, or as many questions as a scene's conversation has."""
    height, width = config.sequence.image_size
    record = {"conversations": [{"from": "human", "value": f"<|image|>{DESCRIBE_QUESTION}"}], "image": "x"}
    conversation = parse_conversation(record, "rehearsal", pathlib.Path(), need_answers=False)
    size = example_size(conversation, tokenizer, config, [(height, width)])
    room = _max_tokens(config) + MAX_TOKENS  # of the answer, and of a longer question
    if _knows_scenes(manifest):
        room = SCENE_TOKENS - size.tokens
    return size._replace(tokens=size.tokens + room, suffix=size.suffix + room)


def _knows_scenes(manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest is of a model of the small world."""
    return MANIFEST.items() <= manifest.items()


def _max_tokens(config: ModelConfig) -> int:
    return min(MAX_TOKENS, config.generation.max_answer_tokens)


def _conversation(number: int, question: str, reply: str) -> dict:
    """A conversation about drawing `number`."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]
    return {"image": [f"images/{number}.png"], "conversations": turns}
