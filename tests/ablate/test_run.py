"""`unitoken ablate` end to end at its smallest, and what it refuses."""

import json
import math

import pytest

from unitoken_jax.ablate import run
from unitoken_jax.cli.main import main
from unitoken_jax.quickstart import recipe
from unitoken_jax.quickstart.run import Quickstart
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.tokenizer import train_tokenizer


def untrained(quickstart):
    """In place of `Quickstart.train_tokenizers`: the image tokenizer's training has tests of its own."""
    from unitoken_jax.checkpoint.model_directory import save_model
    from unitoken_jax.model.init import init_params

    config = recipe.model_config()
    texts = list(quickstart.dataset.train_texts())
    tokenizer = train_tokenizer(texts, config.vq.codes, recipe.VOCABULARY, [TEXT_TO_IMAGE_INSTRUCTION])
    if not (quickstart.out / "start").exists():
        save_model(quickstart.out / "start", config, init_params(config, 0), tokenizer)


@pytest.mark.slow
def test_trains_scores_and_runs_nothing_twice(tmp_path, monkeypatch, capsys):
    """Slow, since it compiles and runs two trainings and both kinds of scoring."""
    monkeypatch.setattr(Quickstart, "train_tokenizers", untrained)
    monkeypatch.setattr(run, "CELLS", [cell for cell in run.CELLS if cell.name == "unified-small"])
    monkeypatch.setattr(run, "PRETRAINING", ())
    command = ["ablate", "--out", str(tmp_path / "out"), "--seeds", "1", "--scale", "0.001"]
    assert main(command) == 0, capsys.readouterr().err
    assert "| unified-small |" in capsys.readouterr().out
    seed = tmp_path / "out" / "seed0"
    scores = json.loads((seed / "scores.json").read_text())
    assert set(scores["unified-small"]) >= {"general", "textread", "generation", "steps"}
    assert not (seed / "unified-small" / "checkpoints").exists()
    assert (tmp_path / "out" / "seed0" / "pretrained" / "unified" / "model").is_dir()  # stage I came before

    watched = seed / "scores.json", seed / "unified-small" / "model" / "manifest.json"
    before = [path.stat().st_mtime_ns for path in watched]
    (tmp_path / "out" / "seed7").mkdir()  # of another machine
    (tmp_path / "out" / "seed7" / "scores.json").write_text(json.dumps(scores))
    assert main(command) == 0
    assert before == [path.stat().st_mtime_ns for path in watched]
    assert "standard deviation of 2 seeds" in capsys.readouterr().out
    assert main([*command[:-1], "0.002"]) == 2
    assert "other settings (scale)" in capsys.readouterr().err


def test_folders_that_are_no_seeds_are_left_out(tmp_path):
    scores = {"unified-small": {"general": 0.5, "steps": 4}}
    for name in ("seed1", "seed0", "seed0_old", "seed00", "seeds"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
    rows = run.Ablation(tmp_path, 1.0).scores()
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0] == {"seed": 0, "cell": "unified-small", "general": 0.5, "steps": 4}


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"scale": math.nan}, {"seeds": 0}, {"first_seed": -1}])
def test_refuses_nothing_to_do(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected numbers above 0"):
        run.run(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
