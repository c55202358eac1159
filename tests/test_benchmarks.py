"""The benchmarks that have a small form run."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.slow
def test_all_sides_of_generate_vs_transformers_choose_the_same_ids(capsys):
    pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    load("generate_vs_transformers").main(["--small", "--speculate", "3", "--quantize", "int8"])
    printed = capsys.readouterr().out
    assert printed.count("the first 22 of 22 ids are ours") == 2
    assert "speculation: 22 of 22 ids are plain decoding's" in printed


@pytest.mark.slow
def test_gpu_train_measures_both_stages(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = [BENCHMARKS / "gpu_train.sh", "--small", "--steps", "2", "--out", tmp_path / "out.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "out.json").read_text())
    assert [(stage["stage"], stage["depth"], stage["extrapolated"]) for stage in stages] == [
        (1, 4, False),
        (2, 4, False),
    ]
    assert all(stage["tokens_per_second"] > 0 for stage in stages)
    assert 0.5 < stages[0]["flops"] / stages[1]["flops"] < 0.8
    assert "a sample in stage 1 takes" in done.stdout


def test_gpu_train_goes_on_by_the_layer_where_not_all_fit():
    gpu_train = load("gpu_train")
    same = {"stage": 2, "tokens": 100, "samples": 2, "peak_flops": 1e3, "device": "x"}
    found = [
        same | {"depth": 16, "step_seconds": 2.0, "flops": 1000.0},
        same | {"depth": 8, "step_seconds": 1.2, "flops": 520.0},
    ]
    whole = gpu_train.at_depth(found, 32)
    assert whole["extrapolated"]
    assert whole["step_seconds"] == pytest.approx(2.0 + 16 * 0.1)
    assert whole["mfu"] == pytest.approx((1000 + 16 * 60) / 3.6 / 1e3)
    assert gpu_train.at_depth(found[:1], 32)["depth"] == 16
    plan = gpu_train.Plan(2, 32, "full", 2, 8, "auto", False, False)
    assert 100e9 < plan.needs() < 125e9  # an H200 has 141
    assert gpu_train.row_layout(gpu_train.configs.ModelConfig())["length"] == 5120


@pytest.mark.parity
@pytest.mark.slow
def test_step_vs_torch_takes_the_same_steps_on_all_sides(capsys):
    pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    load("step_vs_torch").main(["--small", "--repeats", "1"])  # it raises where losses differ
    assert capsys.readouterr().out.count("losses of 2 steps, ours and") == 2
