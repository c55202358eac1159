"""`unitoken quickstart`: the whole path on a small model, from PNG files and JSONL to answers and images.

Nothing here is special-cased: every step calls the function its own command calls. A run that was stopped
goes on where it was; a finished step is recognised by what it left.

    data/ start/ stage1/ stage2/ stage3/ model/ summary.json and the sheets of `report`
    vq/ tokenizers/ vision/ base/ too, where all is trained from random weights
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from unitoken_jax import pretrained
from unitoken_jax.config import Config, to_dict
from unitoken_jax.quickstart import evaluate, recipe, report
from unitoken_jax.quickstart.recipe import Recipe, Stage
from unitoken_jax.scenes import MANIFEST, checker
from unitoken_jax.scenes.augmentation import augmented_batches
from unitoken_jax.scenes.dataset import Dataset, write_dataset
from unitoken_jax.scenes.scene import COLOURS, KINDS
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.tokenizer import train_tokenizer
from unitoken_jax.setting_ranges import check_seed
from unitoken_jax.storage.paths import absolute


def run(
    out: str | os.PathLike, minutes: float | None = None, seed: int = 0, from_scratch: bool = False
) -> dict:
    """Runs or resumes the quickstart in directory `out`; returns what it writes to summary.json.

    It starts from the package's base model, or with `from_scratch` trains everything, tokenizers too.
    `minutes` scales the data and every run; it is what two CPU cores of the kind named in RESULTS.md take
    (None: 5, 15 from scratch). Raises ValueError where `out` holds something else or a quickstart with other
    settings.
    """
    chosen = recipe.FROM_SCRATCH if from_scratch else recipe.FROM_BASE
    minutes = chosen.minutes if minutes is None else minutes
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes}; expected a number above 0")
    check_seed(seed, "--seed")
    quickstart = Quickstart(absolute(out), chosen, float(minutes), seed)
    if not from_scratch:
        pretrained.model_path("base")  # before anything is written
    settings = {
        "minutes": quickstart.minutes,
        "seed": seed,
        "from_scratch": from_scratch,
        "model": to_dict(recipe.model_config()),
    }
    init_run_dir(quickstart.out, settings, "quickstart")
    steps: list[tuple[str, Callable[[], None]]] = [
        ("data: scenes as PNG files and conversations", quickstart.write_data)
    ]
    if from_scratch:
        steps += [
            ("image tokenizer: VQ-GAN", quickstart.train_tokenizers),
            ("vision: SigLIP learns what is where", quickstart.train_vision),
        ]
    else:
        steps.append(("start: the base model of the package", quickstart.start_from_base))
    steps.append(("codes: every training image through the tokenizer, once", quickstart.write_codes))
    for stage in chosen.stages:
        steps.append((f"{stage.name}: {stage.purpose}", functools.partial(quickstart.train_stage, stage)))
    costs = StepCosts(quickstart.out / "cost.json", len(steps) + 2)
    for number, (name, step) in enumerate(steps, 1):
        with costs.measure(number, name):
            step()
    with costs.measure(len(steps) + 1, "held-out questions and prompts"):
        results = quickstart.evaluate_model()
    with costs.measure(len(steps) + 2, "report"):
        summary = summarize(quickstart, results, costs)
        quickstart.write_report(results, summary)
    return summary


def init_run_dir(out: pathlib.Path, settings: dict, description: str) -> None:
    """Makes `out` the directory of a run with `settings`, which settings.json keeps.

    Raises ValueError, which calls the run a `description`, where it holds a run with other settings, or
    something else.
    """
    path = out / "settings.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in settings if stored.get(key) != settings[key]]:
            raise ValueError(
                f"{out} holds a {description} with other settings ({', '.join(differing)}): choose "
                "another --out, repeat what its settings.json says to go on with it, or remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {description}: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


class StepCosts:
    """What the steps of a run took, kept in the file `path`, so that a resumed run reports its whole cost.

    `seconds` by the steps' names; `peak_gib` is the most memory that a process of the run had. `steps` is how
    many steps there are.
    """

    def __init__(self, path: pathlib.Path, steps: int):
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._path, self._steps = path, steps
        self.seconds: dict[str, float] = stored.get("seconds", {})
        self.peak_gib: float = stored.get("peak_gib", 0.0)

    @contextlib.contextmanager
    def measure(self, number: int, name: str) -> Iterator[None]:
        """Announces a step and adds what the `with` block takes, where it succeeds, to the file."""
        print(f"[{number}/{self._steps}] {name}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.peak_gib = max(self.peak_gib, peak)
        costs = {"seconds": self.seconds, "peak_gib": self.peak_gib}
        self._path.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """The steps of a quickstart in directory `out`. Each finds what those before it left there.

    Args:
        out: the directory.
        recipe: what is trained.
        minutes: scales the data and every training run.
        seed: of data, training and sampling.
    """

    out: pathlib.Path
    recipe: Recipe
    minutes: float
    seed: int

    @property
    def start(self) -> pathlib.Path:
        """The model directory that the first stage starts from, and whose VQ tokenizer makes the codes."""
        return self.out / "start"

    @property
    def dataset(self) -> Dataset:
        """The data set in data/, whether or not it has been written."""
        return Dataset(self.out / "data", self.recipe.dataset_settings(self.minutes, self.seed))

    def write_data(self) -> None:
        """Writes the data set: PNG files and conversations."""
        with tqdm(unit="image", disable=None, leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            write_dataset(self.out / "data", self.dataset.settings, progress)

    def train_tokenizers(self) -> None:
        """Trains the text and the image tokenizer: tokenizers/, a model whose other weights are random."""
        from unitoken_jax.checkpoint.model_directory import save_model
        from unitoken_jax.model.init import init_params
        from unitoken_jax.train.logs.metrics import MetricsLog, Progress
        from unitoken_jax.train.vq import train_vq

        out = self.out / "tokenizers"
        if out.exists():
            return
        config = recipe.model_config()
        texts = list(self.dataset.train_texts())
        tokenizer = train_tokenizer(texts, config.vq.codes, recipe.VOCABULARY, [TEXT_TO_IMAGE_INSTRUCTION])
        settings = recipe.vq_train_config(self.minutes, self.seed)
        images = evaluate.read_images(self.dataset.drawn_images()[: recipe.VQ_IMAGES])
        with MetricsLog(self.out / "vq", 10, Progress("vq", settings.steps)) as log:
            vqgan, _ = train_vq(config.vq, settings, images, on_metrics=log.write)
        params = init_params(config, self.seed) | {"vqgan": vqgan}
        save_model(out, config, params, tokenizer)

    def train_vision(self) -> None:
        """Trains SigLIP on the images that are asked about: start/, a model whose decoder is random."""
        from unitoken_jax.checkpoint.model_directory import load_model, save_model
        from unitoken_jax.train.logs.metrics import MetricsLog, Progress
        from unitoken_jax.train.siglip import train_siglip

        if self.start.exists():
            return
        model = load_model(self.out / "tokenizers")
        settings = recipe.siglip_train_config(self.minutes, self.seed)
        images, labels = evaluate.read_scenes(self.dataset.train_scenes(), model.config)
        batches = augmented_batches(images, labels, settings.batch, self.seed)
        classes = len(KINDS) + 1, len(COLOURS) + 1
        with MetricsLog(self.out / "vision", 10, Progress("vision", settings.steps)) as log:
            siglip = train_siglip(
                model.config.siglip, settings, model.params["siglip"], batches, classes, log.write
            )
        save_model(self.start, model.config, {**model.params, "siglip": siglip}, model.tokenizer)

    def start_from_base(self) -> None:
        """Makes start/ of the package's base model, which reads images by SigLIP alone until stage I."""
        from unitoken_jax.checkpoint.model_directory import load_model, save_model

        if not self.start.exists():
            base = load_model(pretrained.model_path("base"), dtype="float32")
            save_model(self.start, recipe.model_config(), base.params, base.tokenizer)

    def write_codes(self) -> None:
        """Writes the VQ codes of every data set that a stage trains on."""
        from unitoken_jax.data.codes import codes_path
        from unitoken_jax.generate.tokenize import tokenize

        for name in sorted({name for stage in self.recipe.stages for name in stage.mixture}):
            path = getattr(self.dataset, name)
            if not codes_path(path).exists():
                tokenize(self.start, path, batch=256)

    def train_stage(self, stage: Stage) -> None:
        """Trains one stage, from the model that the one before it left."""
        from unitoken_jax.train.loop import train

        model = self.out / stage.name / "model"
        if model.exists():
            return
        config = self.stage_config(stage)
        train(config, self.out / stage.name, progress=stage.name)

    def stage_config(self, stage: Stage) -> Config:
        """The run of `stage`, from where the stage before it ended."""
        number = self.recipe.stages.index(stage)
        start = self.out / self.recipe.stages[number - 1].name / "model" if number else self.start
        steps = self.recipe.steps(stage, self.minutes)
        return recipe.run_config(stage, self.dataset, start, steps, self.seed)

    def evaluate_model(self) -> evaluate.Results:
        """Makes model/ of the last stage's model, and answers and draws what was held out with it."""
        from unitoken_jax.checkpoint.model_directory import load_model, save_model
        from unitoken_jax.unitoken import UniToken

        if not (self.out / "model").exists():
            last = load_model(self.out / self.recipe.stages[-1].name / "model")
            save_model(self.out / "model", last.config, last.params, last.tokenizer, MANIFEST)
        model = UniToken.load(self.out / "model")
        return evaluate.evaluate(model, self.dataset, self.seed)

    def write_report(self, results: evaluate.Results, summary: dict) -> None:
        """Writes summary.json, the sheets, tables and loss curves, and prints what they say in short."""
        from unitoken_jax.train.logs.curves import draw_curves

        report.write_report(self.out, self.dataset, results)
        draw_curves([self.out / stage.name for stage in self.recipe.stages], self.out / "loss_curves.png")
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(report.summary_text(self.out, summary))


def summarize(quickstart: Quickstart, results: evaluate.Results, costs: StepCosts) -> dict:
    """What summary.json holds: scores, cost, seeds and versions."""
    from unitoken_jax.checkpoint.model_directory import versions

    return {
        "general": results.answers["general"],
        "textread": results.answers["textread"],
        "generation": results.images["overall"],
        "generation_categories": results.images["categories"],
        "question_kinds": results.answers["kinds"],
        "vq_psnr_db": results.vq_psnr_db,
        "vq_readable": results.vq_readable,
        "vq_codes_used": results.vq_codes_used,
        "checker_accuracy": checker.accuracy(500)["scenes"],
        "minutes": sum(costs.seconds.values()) / 60,
        "minutes_by_step": {name: seconds / 60 for name, seconds in costs.seconds.items()},
        "peak_gib": costs.peak_gib,
        "settings": {"minutes": quickstart.minutes, "from_scratch": quickstart.recipe is recipe.FROM_SCRATCH},
        "seeds": dict.fromkeys(("data", "training", "sampling"), quickstart.seed),
        "versions": {"python": platform.python_version(), **versions()},
        "cpu_count": os.cpu_count(),
    }
