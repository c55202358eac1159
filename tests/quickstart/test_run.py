"""The quickstart end to end, shortened: what it leaves behind, that it resumes, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.helpers.quickstart import MINUTES, finished_quickstart
from unitoken_jax.quickstart import recipe
from unitoken_jax.quickstart.run import run

SCORES = ("general", "textread", "generation", "vq_psnr_db")
LEFT_BEHIND = (
    "model/config.json",
    "model/manifest.json",
    "summary.json",
    "loss_curves.png",
    "generated.png",
    "reconstructions.png",
    "answers.md",
    *(f"{stage.name}/metrics.jsonl" for stage in recipe.FROM_SCRATCH.stages),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_quickstart(tmp_path_factory)


@pytest.mark.slow
def test_leaves_everything_behind(finished):
    """Slow, since it may be the one that trains: see `tests.helpers.quickstart`."""
    assert [name for name in LEFT_BEHIND if not (finished / name).stat().st_size] == []
    assert list(finished.glob("stage2/tensorboard/*"))
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) >= {*SCORES, "minutes", "peak_gib", "seeds", "versions"}
    assert len(summary["generation_categories"]) == 6
    with Image.open(finished / "generated.png") as sheet:
        assert min(sheet.size) > 200


@pytest.mark.slow
def test_goes_on_where_it_was(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    summary = json.loads((out / "summary.json").read_text())
    last = out / recipe.FROM_SCRATCH.stages[-1].name / "model" / "manifest.json"
    before = last.stat().st_mtime_ns
    again = run(out, minutes=MINUTES, from_scratch=True)
    assert last.stat().st_mtime_ns == before  # nothing was trained twice
    assert {name: again[name] for name in SCORES} == {name: summary[name] for name in SCORES}
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(again))


@pytest.mark.slow
def test_commands_on_the_users_own_files(finished, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "my.png")
    model = ["--model", str(finished / "model")]
    answer = unitoken("answer", *model, "--image", str(tmp_path / "my.png"), "--question", "what do you see?")
    assert answer.returncode == 0, answer.stderr
    drawn = unitoken("generate", *model, "--prompt", "a red circle", "--out", str(tmp_path / "drawn.png"))
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.size == recipe.model_config().sequence.image_size[::-1]


def test_refuses_a_directory_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no quickstart"):
        run(tmp_path, minutes=1, from_scratch=True)


def test_refuses_other_settings(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"minutes": 15.0, "seed": 1}))
    with pytest.raises(ValueError, match=r"other settings \(minutes, seed, from_scratch, model\)"):
        run(tmp_path, minutes=1, from_scratch=True)


def test_refuses_no_time(tmp_path):
    with pytest.raises(ValueError, match="--minutes is -1"):
        run(tmp_path / "new", minutes=-1, from_scratch=True)


def unitoken(*arguments):
    command = [sys.executable, "-m", "unitoken_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
