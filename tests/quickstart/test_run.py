"""The quickstart end to end, shortened: what it leaves behind, that it resumes, and what it refuses."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from unitoken_jax.quickstart import recipe
from unitoken_jax.quickstart.run import run

MINUTES = 0.15
LEFT_BEHIND = (
    "model/config.json",
    "model/manifest.json",
    "summary.json",
    "loss_curves.png",
    "generated.png",
    "reconstructions.png",
    "answers.md",
    *(f"{stage.name}/metrics.jsonl" for stage in recipe.STAGES),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "run"
    return out, run(out, minutes=MINUTES, seed=3)


@pytest.mark.slow
def test_leaves_everything_behind(finished):
    out, summary = finished
    assert [name for name in LEFT_BEHIND if not (out / name).stat().st_size] == []
    assert list(out.glob("stage2/tensorboard/*"))
    written = json.loads((out / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    scores = {"general", "textread", "generation", "vq_psnr_db"}
    assert set(written) >= scores | {"minutes", "peak_gib", "seeds", "versions"}
    assert len(written["generation_categories"]) == 6
    with Image.open(out / "generated.png") as sheet:
        assert min(sheet.size) > 200


@pytest.mark.slow
def test_goes_on_where_it_was(finished):
    out, summary = finished
    last = out / recipe.STAGES[-1].name / "model" / "manifest.json"
    before = last.stat().st_mtime_ns
    again = run(out, minutes=MINUTES, seed=3)
    assert last.stat().st_mtime_ns == before  # nothing was trained twice
    for score in ("general", "textread", "generation", "vq_psnr_db"):
        assert again[score] == summary[score]


@pytest.mark.slow
def test_commands_on_the_users_own_files(finished, tmp_path):
    out, _ = finished
    Image.new("RGB", (50, 40), "red").save(tmp_path / "my.png")
    model = ["--model", str(out / "model")]
    answer = unitoken("answer", *model, "--image", str(tmp_path / "my.png"), "--question", "what do you see?")
    assert answer.returncode == 0, answer.stderr
    drawn = unitoken("generate", *model, "--prompt", "a red circle", "--out", str(tmp_path / "drawn.png"))
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.size == recipe.model_config().sequence.image_size[::-1]


def test_refuses_a_directory_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no quickstart"):
        run(tmp_path, minutes=1)


def test_refuses_other_settings(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"minutes": 15.0, "seed": 1}))
    with pytest.raises(ValueError, match=r"other settings \(minutes, seed, model\)"):
        run(tmp_path, minutes=1)


def test_refuses_no_time(tmp_path):
    with pytest.raises(ValueError, match="--minutes is -1"):
        run(tmp_path / "new", minutes=-1)


def unitoken(*arguments):
    command = [sys.executable, "-m", "unitoken_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
