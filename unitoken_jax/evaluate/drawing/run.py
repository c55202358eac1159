"""`unitoken evaluate draw`: prompts -> images where their scorers look for them, a recipe, a report."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.devices import load_model
from unitoken_jax.evaluate.drawing.benchmark import DrawingBenchmark
from unitoken_jax.evaluate.drawing.gallery import RESULTS, write_gallery
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, PromptError, write_drawn
from unitoken_jax.evaluate.drawing.scorers import score_images
from unitoken_jax.evaluate.faults import encodable, named
from unitoken_jax.evaluate.registry import find_drawing
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION, build_text_to_image_prompt
from unitoken_jax.storage.paths import expand_home

BATCH = 16
CHOICES = ("number", "seed", "guidance", "top_k", "temperature", "batch")


def draw_benchmark(
    benchmark: str | None,
    model: str | os.PathLike | None,
    data: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    adapter: str | os.PathLike | None = None,
    rewritten: str | os.PathLike | None = None,
    recipe: str | os.PathLike | None = None,
    **choices,
) -> list[str]:
    """Draws every prompt of file `data` with model directory `model`; lines for the user.

    Args:
      benchmark: its name; None: the recipe's.
      model: a model directory; None: the adapter's base, or the one that is meant without a name.
      adapter: an adapter folder, of that model.
      data: the benchmark's prompt file; None: the one in the package, of a benchmark that has it there.
      out: the folder that the images are drawn below.
      rewritten: a file of prompts to draw instead; see `DrawingBenchmark.read`.
      recipe: an earlier run's recipe.json; prompts and weights must then be the same.
      **given: number, seed, guidance, top_k, temperature, batch; what is None or absent is the paper's, then
        the model's, or what the recipe says.

    Raises ValueError for what cannot be used.
    """
    from unitoken_jax.checkpoint.adapter import load_adapter, model_of

    earlier = None if recipe is None else recipes.load(recipe)
    drawing, settings = _choose(benchmark, earlier, str(recipe), choices)
    if not isinstance(settings["number"], int) or settings["number"] < 1:
        raise ValueError(f"number is {settings['number']}; expected at least 1 image a prompt")
    data = drawing.data_file(data)
    prompts = drawing.read(data, settings["number"], rewritten)
    change = None if adapter is None else load_adapter(adapter)
    model = model_of(model, change)
    check_prompts(model, prompts)

    loaded = load_model(model, settings.get("dtype"), adapter)
    if earlier is None:
        settings = _settings(drawing, loaded, settings)
    files = {"prompts": pathlib.Path(data)}
    if rewritten is not None:
        files["rewritten"] = pathlib.Path(rewritten)
    template, dataset = {"lead": TEXT_TO_IMAGE_INSTRUCTION}, encodable(pathlib.Path(data).stem)
    current = recipes.make(drawing.name, dataset, files, template, settings, str(model), change)
    notes = [] if earlier is None else recipes.check_same(earlier, current, str(recipe), recipes.MAY_DIFFER)
    out = pathlib.Path(expand_home(out))
    run_folder = drawing.run_folder(data, out)
    write_recipe(run_folder / "recipe.json", current)
    write_drawn(run_folder, prompts)
    count = drawing.run(loaded, prompts, out, run_folder / ".part.png", settings)
    total = sum(len(prompt.files) for prompt in prompts)
    lines = [*notes, f"{drawing.name}: {count} images drawn, {total} below {run_folder}"]
    if rewritten is not None:
        lines.append(
            f"  drawn from rewritten prompts ({rewritten}); names and metadata hold the original ones"
        )
    if drawing.scored_here:
        lines += score_images(drawing, run_folder)
    elif not (run_folder / RESULTS).exists():
        lines.append(
            f"  to score: its authors' scorer on {run_folder}, then "
            f"`unitoken evaluate import --scores FILE --out {run_folder}`"
        )
    return [*lines, f"report: {write_gallery(run_folder, drawing, prompts, settings)}"]


def _choose(
    benchmark: str | None, earlier: Mapping | None, recipe: str, choices: Mapping
) -> tuple[DrawingBenchmark, dict]:
    """The benchmark, and the settings; those that only the model knows are None.

    `earlier` is the recipe to repeat, from file `recipe`; None: a run of its own.
    """
    if earlier is not None:
        drawing = find_drawing(earlier["benchmark"])
        if benchmark is not None and find_drawing(benchmark) is not drawing:
            raise ValueError(f"{recipe} is for {earlier['benchmark']}, not for {benchmark}")
        return drawing, recipes.settings_of(earlier, choices, recipe)
    if benchmark is None:
        raise ValueError("which benchmark? give its name, or an earlier run's recipe")
    drawing = find_drawing(benchmark)
    settings = {name: choices.get(name) for name in CHOICES}
    if settings["number"] is None:
        settings["number"] = drawing.number
    return drawing, settings


def _settings(benchmark: DrawingBenchmark, model, choices: Mapping) -> dict:
    """The settings of a run: `choices`, and where they are None the paper's or the model's values."""
    from unitoken_jax.generate.image import default_top_k

    generation = model.config.generation
    default = {
        "seed": 0,
        "guidance": generation.guidance if benchmark.guidance is None else benchmark.guidance,
        "top_k": default_top_k(model.config),
        "temperature": generation.temperature,
        "batch": BATCH,
    }
    settings = {name: default[name] if value is None else value for name, value in choices.items()}
    size = list(model.config.sequence.image_size)
    return settings | {"size": size, "dtype": str(model.module.dtype)}


def write_recipe(path: pathlib.Path, recipe: Mapping) -> None:
    """Writes the recipe before the first image; ValueError where another run's images are there."""
    if path.exists():
        try:
            earlier = recipes.load(path)
        except ValueError as error:
            raise ValueError(
                f"{error}: choose another --out, or remove it if the images are this run's"
            ) from None
        recipes.check_same(earlier, recipe, f"{path.parent} (choose another --out)")
    path.parent.mkdir(parents=True, exist_ok=True)
    recipes.write_json(path, recipe)


def check_prompts(model: str | os.PathLike, prompts: Sequence[BenchmarkPrompt]) -> None:
    """Raises PromptError for a prompt that the model cannot be given now, not after hours of drawing."""
    from unitoken_jax.checkpoint.model_directory import load_settings

    config, tokenizer, _ = load_settings(model)
    tokenizer = tokenizer.literal()
    for prompt in prompts:
        with named(PromptError, prompt.source):
            build_text_to_image_prompt(prompt.text, tokenizer, config)
