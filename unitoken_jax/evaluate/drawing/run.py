"""`unitoken evaluate` on text-to-image benchmarks: prompts -> images where their scorers look for them.

Images appear one by one, each whole; called again, a killed run draws only what is missing. Groups of
prompts are the same either way, so the images are the same byte for byte.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tqdm import tqdm

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.devices import load_model
from unitoken_jax.evaluate.drawing.gallery import RESULTS, write_gallery
from unitoken_jax.evaluate.drawing.prompts import (
    BenchmarkPrompt,
    DrawingBenchmark,
    PromptError,
    find_drawing_benchmark,
    read_prompts,
    write_drawn,
)
from unitoken_jax.evaluate.drawing.scenes import score_scenes
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION, build_text_to_image_prompt

BATCH = 16
CHOICES = ("number", "seed", "guidance", "top_k", "temperature", "batch")


def draw_benchmark(
    benchmark: str | None,
    model: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    rewritten: str | os.PathLike | None = None,
    recipe: str | os.PathLike | None = None,
    **given,
) -> list[str]:
    """Draws every prompt of file `data` below folder `out`; lines for the user.

    `rewritten`: see `read_prompts`. `given`: number, seed, guidance, top_k, temperature, batch; what is None
    or absent is the paper's, then the model's, or what `recipe`, an earlier run's, says; prompts and weights
    must then be the same. Raises ValueError for what cannot be used.
    """
    repeated = None if recipe is None else recipes.load(recipe)
    if repeated is not None:
        if benchmark is not None and find_drawing_benchmark(benchmark) != find_drawing_benchmark(
            repeated["benchmark"]
        ):
            raise ValueError(f"{recipe} is for {repeated['benchmark']}, not for {benchmark}")
        settings = recipes.settings_of(repeated, given, str(recipe))
        found = find_drawing_benchmark(repeated["benchmark"])
    else:
        found = find_drawing_benchmark(benchmark or "")
        if found is None:
            raise ValueError(f"{benchmark!r} is no benchmark of images to draw")
        settings = {name: given.get(name) for name in CHOICES}
        settings["number"] = found.number if settings["number"] is None else settings["number"]
    if not isinstance(settings["number"], int) or settings["number"] < 1:
        raise ValueError(f"number is {settings['number']}; expected at least 1 image a prompt")
    prompts = read_prompts(found, data, settings["number"], rewritten)
    _check(model, prompts)

    loaded = load_model(model, dtype=settings.get("dtype"))
    if repeated is None:
        settings = _settings(found, loaded, settings)
    files = {"prompts": pathlib.Path(data)}
    if rewritten is not None:
        files["rewritten"] = pathlib.Path(rewritten)
    dataset = pathlib.Path(data).stem
    made = recipes.make(found.name, dataset, files, {"lead": TEXT_TO_IMAGE_INSTRUCTION}, settings, str(model))
    notes = [] if repeated is None else recipes.check_same(repeated, made, str(recipe), recipes.MAY_DIFFER)
    out = pathlib.Path(out)
    root = out / pathlib.Path(prompts[0].files[0]).parts[0] if found.name == "T2I-CompBench++" else out
    _claim(root / "recipe.json", made)
    write_drawn(root, prompts)
    drawn = _draw_all(loaded, prompts, out, root / ".part.png", settings)
    lines = [
        *notes,
        f"{found.name}: {drawn} images drawn, {sum(len(p.files) for p in prompts)} below {root}",
    ]
    if rewritten is not None:
        lines.append(
            f"  drawn from rewritten prompts ({rewritten}); names and metadata hold the original ones"
        )
    if found.name == "quickstart":
        lines += score_scenes(out)
    elif not (root / RESULTS).exists():
        lines.append(
            f"  to score: its authors' scorer on {root}, then `unitoken evaluate --scores FILE --out {root}`"
        )
    return [*lines, f"report: {write_gallery(root, out, found, prompts, settings)}"]


def _settings(found: DrawingBenchmark, model, chosen: Mapping) -> dict:
    """`chosen` with the paper's and the model's values where it is None."""
    from unitoken_jax.generate.image import default_top_k

    own = model.config.generation
    default = {
        "seed": 0,
        "guidance": own.guidance if found.guidance is None else found.guidance,
        "top_k": default_top_k(model.config),
        "temperature": own.temperature,
        "batch": BATCH,
    }
    settings = {name: default[name] if value is None else value for name, value in chosen.items()}
    size = list(model.config.sequence.image_size)
    return settings | {"size": size, "dtype": str(model.module.dtype)}


def _claim(path: pathlib.Path, made: Mapping) -> None:
    """Writes the recipe before the first image; ValueError where another run's images are there."""
    if path.exists():
        recipes.check_same(recipes.load(path), made, f"{path.parent} (choose another --out)")
    path.parent.mkdir(parents=True, exist_ok=True)
    recipes.write_json(path, made)


def _check(model: str | os.PathLike, prompts: Sequence[BenchmarkPrompt]) -> None:
    """Raises PromptError for a prompt that the model cannot be given now, not after hours of drawing."""
    from unitoken_jax.checkpoint.model_directory import load_settings

    config, tokenizer, _ = load_settings(model)
    for prompt in prompts:
        try:
            build_text_to_image_prompt(prompt.text, tokenizer, config)
        except ValueError as error:
            raise PromptError(f"{prompt.source}: {error}") from None


def _draw_all(
    model, prompts: Sequence[BenchmarkPrompt], out: pathlib.Path, part: pathlib.Path, settings: Mapping
) -> int:
    """Draws what is missing, each image first as file `part`; how many images that was."""
    texts = [prompt.text for prompt in prompts]
    number, batch = settings["number"], settings["batch"]
    step = batch // math.gcd(batch, number)  # the fewest prompts whose images fill whole batches
    how = {name: value for name, value in settings.items() if name != "dtype"} | {
        "size": tuple(settings["size"])
    }
    drawn, saving = 0, []
    with (
        tqdm(total=len(texts) * number, unit="image", disable=None) as bar,
        ThreadPoolExecutor(1) as saver,  # files are written while the next images are drawn
    ):
        for start in range(0, len(prompts), step):
            group = prompts[start : start + step]
            for prompt in group:
                _place(prompt, out)
            if not all((out / file).exists() for prompt in group for file in prompt.files):
                own = {prompt.text for prompt in group}
                # Equal prompts get different images by their count in a call: earlier ones are drawn again.
                before = [text for text in texts[:start] if text in own]
                drawings = model.draw(before + [prompt.text for prompt in group], **how)
                files = [file for prompt in group for file in prompt.files]
                _finish(saving)
                for file, drawing in zip(files, drawings[len(before) * number :], strict=True):
                    saving.append(saver.submit(_save, drawing.image, part, out / file))
                drawn += len(files)
            bar.update(len(group) * number)
        _finish(saving)
    return drawn


def _finish(saving: list[Future]) -> None:
    """Waits until everything is saved, and raises what went wrong."""
    for one in saving:
        one.result()
    saving.clear()


def _place(prompt: BenchmarkPrompt, out: pathlib.Path) -> None:
    """The prompt's folder, with its metadata."""
    (out / prompt.files[0]).parent.mkdir(parents=True, exist_ok=True)
    if prompt.metadata is not None:
        file, content = prompt.metadata
        (out / file).write_text(content, encoding="utf-8")


def _save(image, part: pathlib.Path, file: pathlib.Path) -> None:
    """A PNG at `file`, whole or not at all. `part` is elsewhere: scorers read all that a folder holds."""
    image.save(part, format="PNG")
    os.replace(part, file)
