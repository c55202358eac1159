"""`unitoken quickstart`: the whole path on a small model, from PNG files and JSONL to answers and images.

Nothing here is special-cased: every step calls the function its own command calls. A run that was stopped
goes on where it was; a finished step is recognised by what it left.

    data/ vq/ start/ sight/ base/ stage1/ stage2/ stage3/ model/ summary.json and the sheets of `report`
"""

import dataclasses
import json
import os
import pathlib
import platform
import resource
import time

from tqdm import tqdm

from unitoken_jax.config import to_dict
from unitoken_jax.quickstart import evaluate, recipe, report
from unitoken_jax.scenes import checker
from unitoken_jax.scenes.dataset import Dataset, write_dataset
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.tokenizer import train_tokenizer


def run(out: str | os.PathLike, minutes: float = recipe.BUDGET, seed: int = 0) -> dict:
    """Runs or resumes the quickstart in directory `out`; returns what it writes to summary.json.

    `minutes` scales the data and every run; it is what two CPU cores of the kind named in RESULTS.md take.
    Raises ValueError where `out` holds something else or a quickstart with other settings.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes}; expected a number above 0")
    quickstart = Quickstart(pathlib.Path(out).absolute(), float(minutes), seed)
    quickstart.claim()
    steps = [
        ("data: scenes as PNG files and conversations", quickstart.data),
        ("image tokenizer: VQ-GAN", quickstart.tokenizers),
        ("codes: every training image through it, once", quickstart.codes),
        *(
            (f"{stage.name}: {stage.purpose}", lambda stage=stage: quickstart.stage(stage))
            for stage in recipe.STAGES
        ),
        ("held-out questions and prompts", quickstart.evaluation),
        ("report", quickstart.report),
    ]
    for number, (name, step) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {name}", flush=True)
        start = time.monotonic()
        step()
        quickstart.spent(name, time.monotonic() - start)
    return quickstart.summary


def init_run_dir(out: pathlib.Path, settings: dict, what: str) -> None:
    """Makes `out` the directory of a run with `settings`, kept in settings.json; `what` names it in errors.

    Raises ValueError where it holds a run with other settings, or something else.
    """
    path = out / "settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in settings if found.get(key) != settings[key]]:
            raise ValueError(
                f"{out} holds a {what} with other settings ({', '.join(differing)}): choose "
                "another --out, repeat what its settings.json says to go on with it, or remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {what}: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass
class Quickstart:
    """The run in directory `out`."""

    out: pathlib.Path
    minutes: float
    seed: int

    def __post_init__(self):
        self.dataset = Dataset(self.out / "data", recipe.dataset_settings(self.minutes, self.seed))
        self.cost = {"seconds": {}, "peak_gib": 0.0}
        self.results: evaluate.Results | None = None
        self.summary: dict = {}

    def claim(self) -> None:
        """Makes the directory this run's. Raises ValueError where it is another's."""
        settings = {"minutes": self.minutes, "seed": self.seed, "model": to_dict(recipe.model_config())}
        init_run_dir(self.out, settings, "quickstart")
        cost = self.out / "cost.json"
        if cost.exists():
            self.cost = json.loads(cost.read_text(encoding="utf-8"))

    def data(self) -> None:
        with tqdm(unit="image", disable=None, leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            write_dataset(self.out / "data", self.dataset.settings, progress)

    def tokenizers(self) -> None:
        """Trains the text and the image tokenizer: start/, a model whose other weights are random."""
        from unitoken_jax.checkpoint.model_directory import save_model
        from unitoken_jax.model.init import init_params
        from unitoken_jax.train.logs.metrics import MetricsLog, Progress
        from unitoken_jax.train.vq import train_vq

        start = self.out / "start"
        if start.exists():
            return
        config = recipe.model_config()
        texts = list(self.dataset.train_texts())
        tokenizer = train_tokenizer(texts, config.vq.codes, recipe.VOCABULARY, [TEXT_TO_IMAGE_INSTRUCTION])
        settings = recipe.vq_train_config(self.minutes, self.seed)
        images = evaluate.read_images(self.dataset.train_images()[: recipe.VQ_IMAGES])
        with MetricsLog(self.out / "vq", 10, Progress("vq", settings.steps)) as log:
            vqgan, _ = train_vq(config.vq, settings, images, on_metrics=log.write)
        params = init_params(config, self.seed) | {"vqgan": vqgan}
        save_model(start, config, params, tokenizer)

    def codes(self) -> None:
        from unitoken_jax.data.codes import codes_path
        from unitoken_jax.generate.tokenize import tokenize

        for name in sorted({name for stage in recipe.STAGES for name in stage.mixture}):
            path = getattr(self.dataset, name)
            if not codes_path(path).exists():
                tokenize(self.out / "start", path, batch=256)

    def stage(self, stage: recipe.Stage) -> None:
        from unitoken_jax.train.loop import train

        model = self.out / stage.name / "model"
        if model.exists():
            return
        config = recipe.stage_config(stage, self.out, self.minutes, self.seed)
        train(config, self.out / stage.name, progress=stage.name)

    def evaluation(self) -> None:
        from unitoken_jax.checkpoint.model_directory import load_model, save_model
        from unitoken_jax.unitoken import UniToken

        if not (self.out / "model").exists():
            last = load_model(self.out / recipe.STAGES[-1].name / "model")
            save_model(self.out / "model", last.config, last.params, last.tokenizer)
        model = UniToken.load(self.out / "model")
        self.results = evaluate.evaluate(model, self.dataset, self.seed)

    def report(self) -> None:
        from unitoken_jax.train.logs.curves import draw_curves

        self.summary = self._summary()
        report.write_report(self.out, self.dataset, self.results)
        draw_curves([self.out / stage.name for stage in recipe.STAGES], self.out / "loss_curves.png")
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n", encoding="utf-8")
        print(report.summary_text(self.out, self.summary))

    def spent(self, name: str, seconds: float) -> None:
        """Notes what a step took; kept on disk, so that a resumed run reports its whole cost."""
        self.cost["seconds"][name] = self.cost["seconds"].get(name, 0.0) + seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.cost["peak_gib"] = max(self.cost["peak_gib"], peak)
        (self.out / "cost.json").write_text(json.dumps(self.cost, indent=1) + "\n", encoding="utf-8")

    def _summary(self) -> dict:
        from unitoken_jax.checkpoint.model_directory import versions

        results = self.results
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
            "minutes": sum(self.cost["seconds"].values()) / 60,
            "minutes_by_step": {name: seconds / 60 for name, seconds in self.cost["seconds"].items()},
            "peak_gib": self.cost["peak_gib"],
            "settings": {"minutes": self.minutes},
            "seeds": {"data": self.seed, "training": self.seed, "sampling": self.seed},
            "versions": {"python": platform.python_version(), **versions()},
            "cpu_count": os.cpu_count(),
        }
