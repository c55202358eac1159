"""The report: sheets that show what was scored, and tables that hold every answer."""

import csv
import random
import types

import numpy as np
import pytest

from unitoken_jax.quickstart import report
from unitoken_jax.scenes import scene
from unitoken_jax.scenes.checker import check, score_images
from unitoken_jax.scenes.dataset import DatasetSettings, write_dataset
from unitoken_jax.scenes.prompts import scene_for


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a report of made-up results: a third of the answers wrong, half the images."""
    out = tmp_path_factory.mktemp("run")
    sizes = dict.fromkeys(("train_captions", "train_understanding", "train_generation", "train_instruct"), 2)
    settings = DatasetSettings(**sizes, questions_per_kind=3, prompts_per_category=4)
    dataset = write_dataset(out / "data", settings)
    rng = random.Random(0)
    prompts = dataset.held_out_prompts()
    drawn = np.stack(
        [
            scene.draw(scene_for(prompt, rng, "train") if number % 2 else (), rng, "train")
            for number, prompt in enumerate(prompts)
        ]
    )
    rows = dataset.held_out_questions()
    for number, row in enumerate(rows):
        row["given"] = row["answer"] if number % 3 else "a | b\nc"
    results = types.SimpleNamespace(
        prompts=prompts,
        drawn=drawn,
        verdicts=[check(image, prompt) for image, prompt in zip(drawn, prompts)],
        questions=rows,
        originals=drawn,
        reconstructions=drawn // 2,
    )
    report.write_report(out, dataset, results)
    return out, results


def test_files(run):
    out, results = run
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {"generated.png", "reconstructions.png", "answers.png", "answers.md", "answers.csv"}
    with (out / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["given"] for row in rows] == [row["given"] for row in results.questions]


def test_markdown_rows_survive_any_answer(run):
    out, results = run
    lines = [
        line
        for line in (out / "answers.md").read_text().splitlines()
        if line.startswith(("| right", "| WRONG"))
    ]
    assert len(lines) == len(results.questions)
    assert all(line.replace("\\|", "").count("|") == 7 for line in lines)
    assert sum(line.startswith("| WRONG") for line in lines) == len(lines) // 3


def test_frames_tell_right_from_wrong(run):
    _, results = run
    sheet = np.asarray(report.generated_sheet(results.prompts, results.drawn, results.verdicts))
    frames = {colour: (sheet == np.array(colour)).all(-1).sum() for colour in (report.RIGHT, report.WRONG)}
    assert all(count > 300 for count in frames.values())
    only_right = [verdict for verdict in results.verdicts if verdict.ok]
    prompts = [prompt for prompt, verdict in zip(results.prompts, results.verdicts) if verdict.ok]
    sheet = np.asarray(report.generated_sheet(prompts, results.drawn[: len(prompts)], only_right))
    assert not (sheet == np.array(report.WRONG)).all(-1).any()


def test_few_reconstructions(run):
    _, results = run
    assert report.reconstruction_sheet(results.originals[:3], results.reconstructions[:3]).height < 300


def test_closing_words(run, tmp_path):
    out, results = run
    scores = score_images(results.prompts, results.verdicts)
    summary = {
        "general": 0.911,
        "textread": 0.8,
        "generation": scores["overall"],
        "generation_categories": scores["categories"],
        "vq_psnr_db": 27.25,
        "minutes": 13.0,
        "peak_gib": 3.0,
    }
    words = report.summary_text(out, summary)
    for wanted in (
        "General 0.91",
        "27.2 dB",
        "unitoken answer",
        "unitoken generate",
        "answers.png",
        str(out),
    ):
        assert wanted in words
    assert (out / "data/images/held_out/000000.png").is_file()  # the image the words suggest
