"""`unitoken ablate` end to end at its smallest, and what it refuses."""

import json

import pytest

from unitoken_jax.cli import main
from unitoken_jax.quickstart import ablation


@pytest.mark.slow
def test_trains_scores_and_goes_on(tmp_path, monkeypatch, capsys):
    cells = [cell for cell in ablation.CELLS if cell.name in ("generation", "discrete-joint")]
    monkeypatch.setattr(ablation, "CELLS", cells)
    monkeypatch.setattr(ablation, "PRETRAINING", ())
    command = ["ablate", "--out", str(tmp_path / "out"), "--scale", "0.001", "--seeds", "1"]
    assert main(command) == 0, capsys.readouterr().err
    assert "| discrete-joint |" in capsys.readouterr().out
    assert (tmp_path / "out" / "ablation.png").stat().st_size
    scores = tmp_path / "out" / "seed0" / "discrete-joint" / "scores.json"
    assert set(json.loads(scores.read_text())) >= {"general", "textread", "generation", "steps", "seconds"}
    finished = scores.stat().st_mtime_ns
    (tmp_path / "out" / "seed0" / "generation" / "scores.json").unlink()  # as if stopped before it was scored
    assert main(command) == 0
    assert scores.stat().st_mtime_ns == finished
    assert main([*command[:-3], "0.002"]) == 2
    assert "other settings (scale)" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--scale", "0"], ["--seeds", "0"], ["--scale", "nan"]])
def test_refuses_nothing_to_do(tmp_path, wrong, capsys):
    assert main(["ablate", "--out", str(tmp_path / "out"), *wrong]) == 2
    assert "expected numbers above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
