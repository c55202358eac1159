"""Checkpoints: round trip, path checks, how many are kept, run directories."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_run import launch
from unitoken_jax.config import (
    Config,
    MeshConfig,
    OptimizerConfig,
    ParameterGroup,
    SourceConfig,
    TrainConfig,
)
from unitoken_jax.train.checkpoint import (
    Checkpoints,
    check_workdir,
    claim_workdir,
    differing_settings,
    record_data_fingerprint,
)
from unitoken_jax.train.optimizer import transformation
from unitoken_jax.train.state import create

OPTIMIZER = transformation(OptimizerConfig(name="muon"))  # its state is the richer one
CONFIG = Config(optimizer=OptimizerConfig(groups=(ParameterGroup("a", 1.0),)))


def make_state(width=3, trained=("a/kernel",), step=0):
    rng = np.random.default_rng(step)
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(2, width)), jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=4), jnp.bfloat16)},
    }
    state = create(params, dict.fromkeys(trained, 1.0), OPTIMIZER)
    return state.replace(step=jnp.int32(step))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.mark.parametrize("name", ["run", "run[1]", "a/../run*"])
def test_round_trip_is_exact_and_the_newest_are_kept(tmp_path, name):
    tmp_path = f"{tmp_path}/{name}"
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            checkpoints.save(make_state(step=step), 10 * step, CONFIG)
        checkpoints.save(make_state(step=3), 0, CONFIG)  # there already
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 3
        for step in (2, 3):
            found, data = checkpoints.restore(abstract(make_state()), step)
            assert data == 10 * step
            jax.tree.map(np.testing.assert_array_equal, found, make_state(step=step))
            assert jax.tree.map(jnp.dtype, found) == jax.tree.map(jnp.dtype, make_state())
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 1"):
            checkpoints.restore(abstract(make_state()), 1)


def test_one_from_before_the_guard_restores_with_a_fresh_one(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(make_state(step=1).replace(guard=None), 10, CONFIG)
        checkpoints.wait()
        found, _ = checkpoints.restore(abstract(make_state()))
    jax.tree.map(np.testing.assert_array_equal, found, make_state(step=1))


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(make_state(step=1), 0, CONFIG)
        checkpoints.wait()
        with pytest.raises(ValueError) as error:
            checkpoints.restore(abstract(make_state(width=5, trained=("a/kernel", "b/kernel"))))
    message = str(error.value)
    assert "missing from the checkpoint: params/b/kernel" in message
    assert "surplus in the checkpoint: frozen/b/kernel" in message
    assert "shape of params/a/kernel: (2, 3) in the checkpoint, (2, 5) expected" in message


def test_another_runs_directory_is_refused_by_the_keys_that_differ(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    claim_workdir(tmp_path, CONFIG)
    other = dataclasses.replace(CONFIG, train=TrainConfig(steps=7, seed=3))
    with pytest.raises(
        ValueError, match=r"(?s)another run.*train\.steps: 1000 there, 7 here.*train\.seed.*workdir"
    ):
        check_workdir(tmp_path, other)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 1000


def test_settings_that_do_not_change_the_result_may_differ(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    free = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2), train=TrainConfig(save_every=5))
    claim_workdir(tmp_path, free)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["save_every"] == 5


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


def test_data_changes_only_on_purpose_and_where_the_run_is(tmp_path):
    other = (SourceConfig("other.jsonl"),)
    claim_workdir(tmp_path, CONFIG)
    record_data_fingerprint(tmp_path, "one", 0)
    with pytest.raises(ValueError, match=r"(?s)data\.sources: .*no checkpoint is there yet"):
        check_workdir(tmp_path, with_data(sources=other))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(make_state(step=3), 24, CONFIG)
    with pytest.raises(ValueError, match=r"(?s)data\.sources: .*--config\.data\.mixture_start=24\)"):
        check_workdir(tmp_path, with_data(sources=other))
    with pytest.raises(ValueError, match=r"(?s)not what the run in .* began with.*mixture_start=24\)"):
        record_data_fingerprint(tmp_path, "two", 0)
    with pytest.raises(ValueError, match=r"mixture_start is 16, but the newest checkpoint .* is at row 24"):
        check_workdir(tmp_path, with_data(sources=other, mixture_start=16))
    changed = with_data(sources=other, mixture_start=24)
    for _ in range(2):  # the second time it is this run's data
        claim_workdir(tmp_path, changed)
        record_data_fingerprint(tmp_path, "two", 24)
    with pytest.raises(ValueError, match=r"data\.mixture_start: 24 there, 0 here"):
        check_workdir(tmp_path, CONFIG)
    learning = dataclasses.replace(changed, train=TrainConfig(steps=7))
    with pytest.raises(ValueError, match=r"train\.steps: 1000 there, 7 here"):
        check_workdir(tmp_path, learning)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["data"]["mix"]
    path.write_text(json.dumps(stored))
    check_workdir(tmp_path, CONFIG)


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        check_workdir(tmp_path, CONFIG)


def test_differing_settings_are_found_on_either_side():
    assert differing_settings({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": None}) == [
        "b.c: 2 there, 3 here",
        "a: 1 there, null here",
    ]


@pytest.mark.slow
def test_every_mesh_and_number_of_processes_reads_what_another_wrote(tmp_path):
    """Slow, since it starts six processes."""
    script = str(pathlib.Path(__file__).parents[1] / "helpers" / "other_mesh.py")
    topologies = [(2, 2, (1, 4, 1)), (1, 8, (2, 2, 2)), (2, 1, (1, 1, 2)), (1, 1, (1, 1, 1))]
    for step, (processes, devices, mesh) in enumerate(topologies, 1):
        command = [script, str(tmp_path / "run"), *map(str, mesh)]
        running = launch(command, tmp_path / "said", processes, devices)
        codes = [process.wait(timeout=200) for process in running]
        assert codes == [0] * processes, (tmp_path / "said.0.log").read_text()
        with Checkpoints(tmp_path / "run", None) as checkpoints:
            assert checkpoints.latest() == step
