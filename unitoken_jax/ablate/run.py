"""`unitoken ablate`: the paper's Tables 5 and 6 with the quickstart's model and data, several seeds.

    data/ vq/ start/            made once, by the quickstart's own steps
    seed0/pretrained/           what the paper's pretrained decoder and SigLIP bring
    seed0/<cell>/               one training run
    seed0/scores.json           by cell; one that is in it is finished
    findings.md, scores.csv, ablation.png of what is finished

A run that was stopped goes on where it was, and seeds may come from several machines: of each, scores.json is
enough. Data is counted in packed rows of 256 tokens, not in examples: a conversation here has several times
the tokens of an image to draw, in the paper they are about as long.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import time
from typing import Any

from unitoken_jax.ablate import findings
from unitoken_jax.ablate.cells import CELLS, Cell, Encoding
from unitoken_jax.config import to_dict
from unitoken_jax.quickstart import evaluate, recipe
from unitoken_jax.quickstart.recipe import Stage, muon
from unitoken_jax.quickstart.run import Quickstart, init_run_dir
from unitoken_jax.scenes import checker, questions
from unitoken_jax.setting_ranges import check_seed
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import absolute

# Training steps, at scale 1, for a million of the paper's examples.
STEPS_PER_MILLION = 60
# Minutes of the quickstart whose data and VQ tokenizer are used, at scale 1.
DATA_MINUTES = 30.0
# A seed's folder, as `Ablation.cell` names it.
_SEED_FOLDER = re.compile(r"seed(0|[1-9][0-9]*)")

# Pattern of all parameters that any stage trains.
_ALL = "siglip|adapter|decoder"
# The paper starts from a SigLIP that sees and a decoder that draws and reads codes, and aligns the two (stage
# I) where features are read. Each starts where the one before ended; its steps are those at scale 1.
PRETRAINING = (
    Stage(
        "sight",
        "the decoder learns to read features, and to draw",
        300,
        {"train_generation": 3.0, "train_captions": 7.0},
        muon(_ALL, 1.5e-3),
        encoding="continuous",
    ),
    Stage(
        "codes",
        "the decoder learns to read codes",
        150,
        {"train_generation": 3.0, "train_captions": 7.0},
        muon("decoder", 1.5e-3),
        encoding="discrete",
    ),
)


def _stage_one(encoding: Encoding) -> Stage:
    """Stage I for models that read images by `encoding`."""
    purpose = "SigLIP and the adapter align with the frozen decoder"
    return Stage(
        encoding, purpose, 40, {"train_captions": 1.0}, muon("siglip|adapter", 2.5e-4), encoding=encoding
    )


def _stage_two(cell: Cell) -> Stage:
    """The training run whose result a cell of the tables is."""
    mixture = {"train_generation": float(cell.generation), "train_understanding": float(cell.understanding)}
    return Stage(
        cell.name,
        "",
        round((cell.understanding + cell.generation) * STEPS_PER_MILLION),
        {name: weight for name, weight in mixture.items() if weight},
        muon("decoder" if cell.encoding == "discrete" else _ALL, 1.5e-3),
        encoding=cell.encoding,
    )


def run(out: str | os.PathLike, scale: float = 1.0, seeds: int = 3, first_seed: int = 0) -> pathlib.Path:
    """Trains and scores every cell in directory `out`, or goes on: with `seeds` seeds from `first_seed` on.

    Returns the path of the findings, which cover all seeds that are there and are written after every cell.

    `scale` multiplies data and steps. Raises ValueError where `out` holds something else, or other settings.
    """
    if not scale > 0 or seeds < 1 or first_seed < 0:
        options = f"--scale is {scale}, --seeds {seeds}, --first-seed {first_seed}"
        raise ValueError(f"{options}; expected numbers above 0, and a first seed of 0 or more")
    check_seed(first_seed + seeds - 1, "the last seed")
    ablation = Ablation(absolute(out), float(scale))
    settings = {"scale": float(scale), "steps": STEPS_PER_MILLION, "model": to_dict(recipe.model_config())}
    init_run_dir(ablation.out, settings, "run of `unitoken ablate`")
    for name, step in (
        ("data", ablation.shared.write_data),
        ("image tokenizer", ablation.shared.train_tokenizers),
        ("vision", ablation.shared.train_vision),
        ("codes", ablation.shared.write_codes),
    ):
        print(name, flush=True)
        step()
    for seed in range(first_seed, first_seed + seeds):
        for number, cell in enumerate(CELLS, 1):
            print(f"[seed {seed}, {number}/{len(CELLS)}] {cell.name}", flush=True)
            if ablation.cell(cell, seed):
                findings.write(ablation.out, ablation.scores())
    return findings.write(ablation.out, ablation.scores())


def _read(path: pathlib.Path) -> dict[str, dict]:
    """The scores in a file by cell; {} where there is no such file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The run in directory `out`; `scale` multiplies data and steps."""

    out: pathlib.Path
    scale: float

    @property
    def shared(self) -> Quickstart:
        """The quickstart whose data, tokenizers and codes every cell uses."""
        return Quickstart(self.out, recipe.FROM_SCRATCH, DATA_MINUTES * self.scale, 0)

    def cell(self, cell: Cell, seed: int) -> bool:
        """Trains and scores one cell; False where it was finished already."""
        folder = self.out / f"seed{seed}"
        finished = _read(folder / "scores.json")
        if cell.name in finished:
            return False
        start_time = time.monotonic()
        start = self._pretrained(cell, seed)
        stage = _stage_two(cell)
        self._train(stage, folder / cell.name, start, seed)
        scores = self._score(cell, folder / cell.name / "model", seed)
        scores |= {"steps": self._steps(stage), "seconds": time.monotonic() - start_time}
        write_text(folder / "scores.json", json.dumps(finished | {cell.name: scores}, indent=1) + "\n")
        shutil.rmtree(folder / cell.name / "checkpoints")  # its optimizer state is four fifths of the disk
        return True

    def scores(self) -> list[dict]:
        """What finished cells scored, each with `seed` and `cell`: by seeds, then in the order of CELLS."""
        by_seed = {}
        for path in self.out.glob("seed*/scores.json"):
            if match := _SEED_FOLDER.fullmatch(path.parent.name):  # others, such as seed0_old, were set aside
                by_seed[int(match[1])] = _read(path)
        rows = []
        for seed, finished in sorted(by_seed.items()):
            names = [cell.name for cell in CELLS if cell.name in finished]
            rows += [{"seed": seed, "cell": name, **finished[name]} for name in names]
        return rows

    def _pretrained(self, cell: Cell, seed: int) -> pathlib.Path:
        """Trains the runs that come before `cell`; returns the model directory that it starts from."""
        from unitoken_jax.checkpoint.model_directory import load_model, save_model
        from unitoken_jax.model.init import init_params

        folder = self.out / f"seed{seed}" / "pretrained"
        start = folder / "start"
        if not start.exists():
            shared = load_model(self.out / "start")
            trained = {name: shared.params[name] for name in ("vqgan", "siglip")}
            params = init_params(shared.config, seed) | trained
            save_model(start, shared.config, params, shared.tokenizer)
        stages: tuple[Stage, ...] = PRETRAINING
        if cell.encoding != "discrete":
            stages += (_stage_one(cell.encoding),)
        for stage in stages:
            self._train(stage, folder / stage.name, start, seed)
            start = folder / stage.name / "model"
        return start

    def _train(self, stage: Stage, folder: pathlib.Path, start: pathlib.Path, seed: int) -> None:
        """Trains `stage` in `folder` from the model directory `start`, unless its model is there."""
        import jax

        from unitoken_jax.train.loop import train

        if (folder / "model").exists():
            return
        config = recipe.run_config(stage, self.shared.dataset, start, self._steps(stage), seed)
        train(config, folder, progress=stage.name)
        jax.clear_caches()  # dozens of runs in one process

    def _steps(self, stage: Stage) -> int:
        return max(4, round(stage.steps * self.scale))

    def _score(self, cell: Cell, model: pathlib.Path, seed: int) -> dict:
        """Scores of what the cell was trained for: "general", "textread", "generation", and those by kind."""
        from unitoken_jax.unitoken import UniToken

        loaded, dataset = UniToken.load(model), self.shared.dataset
        scores: dict[str, Any] = {}
        if cell.understanding:
            scores |= questions.score_answers(evaluate.answer_questions(loaded, dataset))
        if cell.generation:
            prompts = dataset.held_out_prompts()
            drawn = evaluate.draw_prompts(loaded, prompts, seed)
            verdicts = [checker.check(image, prompt) for image, prompt in zip(drawn, prompts)]
            images = checker.score_images(prompts, verdicts)
            scores |= {"generation": images["overall"], "categories": images["categories"]}
        return scores
