"""Whatever the mesh and however many processes, a run is the same."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, data_config, write_data
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from tests.helpers.tiny_run import log_of, start
from unitoken_jax.checkpoint.model_directory import load_model, save_model
from unitoken_jax.config import Config, MeshConfig, OptimizerConfig, TrainConfig, to_dict
from unitoken_jax.train.logs.metrics import read_metrics
from unitoken_jax.train.optimizer import stage_groups

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_on_eight_devices():
    """on_eight_devices.py passes; and XLA never had to make the whole of a split array on every device.

    Slow, since eight devices on two cores take twenty steps on six meshes, each with a program of its own.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:cacheprovider",
        ROOT / "tests/helpers/on_eight_devices.py",
    ]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full rematerialization" not in done.stderr


def train_with(folder: pathlib.Path, processes: int, devices: int) -> pathlib.Path:
    """The directory of a run by the command line, each process with `devices` devices."""
    workdir = folder / f"{processes} processes"
    running = start(folder, workdir, processes, devices)
    assert [process.wait(timeout=300) for process in running] == [0] * processes, log_of(workdir)
    return workdir


def files(workdir: pathlib.Path) -> list[str]:
    """What a run has written itself: not Orbax's and the profiler's files. Event files' times are cut off."""
    found = (str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
    inside = re.compile(r"(model/params|checkpoints/\d+/\w+|profile)/")
    return sorted(re.sub(r"tfevents.*", "tfevents", path) for path in found if not inside.match(path))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The whole command, with all that a run writes: metrics, checkpoints, samples, a profile, the model.

    Slow, since it starts three processes and trains and draws in each.
    """
    data = write_data(tmp_path, [QUESTION, DRAWING, TEXT] * 4)
    save_model(tmp_path / "start", CONFIG, tiny_params(), tiny_tokenizer())
    settings = {"steps": 4, "dtype": "float32", "loss_chunk": 32, "save_every": 2, "validate_every": 4}
    settings |= {"sample_every": 4, "profile_steps": 1}
    config = Config(
        model=CONFIG,
        data=data_config(data, validation=data_config(data).sources),
        optimizer=OptimizerConfig(groups=stage_groups(2)),
        mesh=MeshConfig(data=2, fsdp=2),
        train=TrainConfig(init_from=str(tmp_path / "start"), **settings),
    )
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {to_dict(config)!r}\n")

    one, two = train_with(tmp_path, 1, 4), train_with(tmp_path, 2, 2)
    expected, found = read_metrics(one), read_metrics(two)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for name in ("loss", "grad_norm", "validation_loss"):
        numbers = [[row[name] for row in rows if name in row] for rows in (found, expected)]
        np.testing.assert_allclose(*numbers, rtol=1e-5, atol=0, err_msg=name)
    assert "validation_loss" in found[-1]
    assert files(two) == files(one)
    drawn = sorted(path.relative_to(one) for path in one.glob("samples/step_0000004/*"))
    assert {path.suffix for path in drawn} == {".png", ".md"}
    for name in drawn:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    for workdir in (one, two):
        assert list(workdir.glob("profile/**/*.xplane.pb"))
    kinds = ("start", "compile", "data", "productive", "samples")
    for last in (expected[-1], found[-1]):
        assert all(last[f"seconds/{kind}"] > 0 for kind in kinds), last
        assert 0 < last["goodput"] < 1
        assert last["tflop_per_second_per_device"] > 0
    for name in ("config.json", "data.json", "model/config.json", "model/tokenizer.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    models = [load_model(workdir / "model") for workdir in (two, one)]
    assert models[0].manifest["training"] == models[1].manifest["training"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *(each.params for each in models)
    )
    head = models[0].params["decoder"]["lm_head"]["kernel"] - tiny_params()["decoder"]["lm_head"]["kernel"]
    assert np.abs(head).max() > 1e-5
