"""The quickstart's scores on held-out questions, prompts and images."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image
from tqdm import tqdm

from unitoken_jax.config import ModelConfig
from unitoken_jax.scenes.checker import Verdict, check, detect, score_images
from unitoken_jax.scenes.dataset import Dataset
from unitoken_jax.scenes.prompts import Requirement
from unitoken_jax.scenes.questions import score_answers
from unitoken_jax.scenes.scene import COLOURS, GRID, KINDS, Scene, drawings
from unitoken_jax.sequence.image import siglip_crops

BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What was answered and drawn, and how well.

    Args:
        questions: the held-out questions' rows, with the model's answer as `given`.
        answers: scores of the answers, as `score_answers` gives them.
        prompts: the held-out prompts.
        drawn: uint8[n, H, W, 3], an image for each prompt.
        verdicts: the checker's, on each image.
        images: scores of the images, as `score_images` gives them.
        originals: uint8[m, H, W, 3], drawings of held-out scenes.
        reconstructions: uint8[m, H, W, 3], the same after the VQ tokenizer.
        vq_psnr_db: peak signal-to-noise ratio of the reconstructions, in dB.
        vq_readable: share of held-out images that the checker reads the same after the tokenizer.
        vq_codes_used: how many codes occur in them.
    """

    questions: list[dict]
    answers: dict
    prompts: list[Requirement]
    drawn: np.ndarray
    verdicts: list[Verdict]
    images: dict
    originals: np.ndarray
    reconstructions: np.ndarray
    vq_psnr_db: float
    vq_readable: float
    vq_codes_used: int


def evaluate(model, dataset: Dataset, seed: int) -> Results:
    """Answers every held-out question greedily, draws every held-out prompt once."""
    from unitoken_jax.train.vq import psnr, reconstruct

    prompts, number = dataset.held_out_prompts(), len(dataset.held_out_questions())
    originals = drawings(number, seed, "held_out")
    total = number + len(prompts) + len(originals)
    with tqdm(total=total, unit="example", disable=None, leave=False) as bar:
        questions = answer_questions(model, dataset)
        bar.update(len(questions))
        drawn = draw_prompts(model, prompts, seed)
        verdicts = [check(image, prompt) for image, prompt in zip(drawn, prompts)]
        bar.update(len(prompts))
        reconstructions, codes = reconstruct(model.config.vq, model.vq_params, originals, BATCH)
        readable = [detect(before) == detect(after) for before, after in zip(originals, reconstructions)]
        bar.update(len(originals))
    return Results(
        questions=questions,
        answers=score_answers(questions),
        prompts=prompts,
        drawn=drawn,
        verdicts=verdicts,
        images=score_images(prompts, verdicts),
        originals=originals,
        reconstructions=reconstructions,
        vq_psnr_db=float(psnr(originals, reconstructions)),
        vq_readable=float(np.mean(readable)),
        vq_codes_used=len(np.unique(codes)),
    )


def answer_questions(model, dataset: Dataset) -> list[dict]:
    """The held-out questions' rows with the model's answer as `given`."""
    rows = dataset.held_out_questions()
    questions = [[dataset.root / row["image"], row["question"]] for row in rows]
    return [row | {"given": answer} for row, answer in zip(rows, model.answer(questions, batch=BATCH))]


def draw_prompts(model, prompts: list[Requirement], seed: int, **settings) -> np.ndarray:
    """One image for each prompt, uint8[n, H, W, 3]; equal prompts get different images."""
    texts = [prompt.prompt for prompt in prompts]
    return np.stack(
        [np.asarray(image) for image in model.generate(texts, seed=seed, batch=BATCH, **settings)]
    )


def read_images(paths) -> np.ndarray:
    """The pixels of PNG files, all of one size: uint8[n, H, W, 3]."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images)


def read_scenes(scenes: Iterable[tuple[pathlib.Path, Scene]], config: ModelConfig) -> tuple:
    """What SigLIP sees of images, uint8[n, S, S, 3], and what is in each cell, int32[n, 3, 3, 2]: the number
    from 1 of its object's kind among KINDS and of its colour among COLOURS, 0 for none."""
    images, labels = [], []
    colours = tuple(COLOURS)
    for path, scene in scenes:
        with Image.open(path) as image:
            images.append(siglip_crops(image, config.siglip, config.sequence)[0])
        cells = np.zeros((GRID, GRID, 2), np.int32)
        for obj in scene:
            cells[obj.row, obj.column] = KINDS.index(obj.kind) + 1, colours.index(obj.colour) + 1
        labels.append(cells)
    return np.stack(images), np.stack(labels)
