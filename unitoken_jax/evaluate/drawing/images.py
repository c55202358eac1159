"""Prompts -> image files, one by one and each whole; called again, a killed run draws only what is missing.

An image counts as there if it opens: a full disk, or a copy that broke off, leaves files without content.
Groups of prompts are the same either way, so the images are the same byte for byte.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt
from unitoken_jax.storage.atomic import explain_os_error, write_text

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken


def draw_missing(
    model: "UniToken",
    prompts: Sequence[BenchmarkPrompt],
    out: pathlib.Path,
    staging: pathlib.Path,
    settings: Mapping,
) -> int:
    """Draws the images of `prompts` that are not there yet; returns how many it drew.

    Args:
        model: what draws.
        prompts: what to draw, and into which files.
        out: the folder that these files are below.
        staging: the file that each image is first written to.
        settings: a recipe's: number, seed, guidance, top_k, temperature, size, batch, dtype.
    """
    texts = [prompt.text for prompt in prompts]
    number, batch = settings["number"], settings["batch"]
    step = batch // math.gcd(batch, number)  # the fewest prompts whose images fill whole batches
    options = {name: value for name, value in settings.items() if name != "dtype"} | {
        "size": tuple(settings["size"])
    }
    drawn = 0
    saving: list[Future] = []
    with (
        tqdm(total=len(texts) * number, unit="image", disable=None) as bar,
        ThreadPoolExecutor(1) as saver,  # files are written while the next images are drawn
    ):
        for start in range(0, len(prompts), step):
            group = prompts[start : start + step]
            for prompt in group:
                _prepare_folder(prompt, out)
            if not all(_opens(out / file) for prompt in group for file in prompt.files):
                group_texts = {prompt.text for prompt in group}
                # Equal prompts get different images by their count in a call: earlier ones are drawn again.
                before = [text for text in texts[:start] if text in group_texts]
                drawings = model.image_results(before + [prompt.text for prompt in group], **options)
                files = [file for prompt in group for file in prompt.files]
                _finish(saving)
                for file, drawing in zip(files, drawings[len(before) * number :], strict=True):
                    saving.append(saver.submit(save_image, drawing.image, staging, out / file))
                drawn += len(files)
            bar.update(len(group) * number)
        _finish(saving)
    return drawn


def _opens(file: pathlib.Path) -> bool:
    """Whether `file` is an image, whole."""
    try:
        with Image.open(file) as image:
            image.load()
    except Exception:  # whatever Pillow's readers raise: it has to be drawn
        return False
    return True


def _finish(saving: list[Future]) -> None:
    """Waits until everything is saved, and raises what went wrong."""
    for future in saving:
        future.result()
    saving.clear()


def _prepare_folder(prompt: BenchmarkPrompt, out: pathlib.Path) -> None:
    """Makes the prompt's folder, and writes its metadata."""
    (out / prompt.files[0]).parent.mkdir(parents=True, exist_ok=True)
    if prompt.metadata is not None:
        file, content = prompt.metadata
        path = out / file
        if not path.is_file() or path.read_bytes() != content.encode():
            write_text(path, content)


def save_image(image: Image.Image, staging: pathlib.Path, file: pathlib.Path) -> None:
    """A PNG at `file`, whole or not at all. `staging` is elsewhere: scorers read all that a folder holds.

    Raises OSError naming `file` where the disk is full.
    """
    try:
        with open(staging, "wb") as part:
            image.save(part, format="PNG")
            part.flush()
            os.fsync(part.fileno())  # else a full disk or a power cut may leave the name without the content
        os.replace(staging, file)
    except OSError as error:
        raise explain_os_error(error, file) from error
    finally:
        staging.unlink(missing_ok=True)
