"""Runs that train LoRA pairs: what is frozen stays, checkpoints are adapters, resuming changes nothing."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.helpers.tiny_model import tiny_params
from tests.helpers.tiny_run import write_run
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.adapter import load_adapter
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.config import Config, LoraConfig, OptimizerConfig, ParameterGroup
from unitoken_jax.train import loop
from unitoken_jax.train.checkpoint import Checkpoints
from unitoken_jax.train.logs.metrics import read_metrics
from unitoken_jax.train.state import flatten

GROUPS = (ParameterGroup("lora_[ab]$", 1e-2), ParameterGroup("^adapter/", 1e-3))


def lora_config(folder, lora: LoraConfig | None = None, **train) -> Config:
    """The tiny run, with pairs of the decoder and the MLP adapter trained."""
    config = write_run(folder, **{"steps": 6, "save_every": 2, "keep": 2} | train)
    data = dataclasses.replace(config.data, validation=config.data.sources)
    return dataclasses.replace(
        config,
        data=data,
        lora=lora or LoraConfig(rank=2, alpha=6.0, dropout=0.1),
        optimizer=OptimizerConfig(groups=GROUPS, weight_decay=0.0),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, run directory, last state) of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("lora")
    config = lora_config(folder, steps=50, save_every=20, validate_every=10, keep_best=True)
    return config, folder / "run", loop.train(config, folder / "run", progress=None)


def test_frozen_leaves_stay_and_have_no_moments(finished):
    _, _, state = finished
    before = flatten(tiny_params())
    trained = {path for path in before if path.startswith("adapter/")}
    assert {path for path in state.params if "/lora_" not in path} == trained
    for path in set(before) - trained:
        np.testing.assert_array_equal(state.frozen[path], before[path], err_msg=path)
    assert all(np.any(state.params[path]) for path in state.params if path.endswith("lora_b"))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in state.params.values())


def test_every_checkpoint_is_an_adapter_of_its_own(finished):
    config, run, state = finished
    assert sorted(path.name for path in (run / "adapters").iterdir()) == ["step_0000040", "step_0000050"]
    last, final, best = (load_adapter(run / name) for name in ("adapters/step_0000050", "adapter", "best"))
    for path, value in state.params.items():
        np.testing.assert_array_equal(last.params[path], value)
        np.testing.assert_array_equal(final.params[path], best.params[path])
    assert last.lora == config.lora
    losses = [row["validation_loss"] for row in read_metrics(run) if "validation_loss" in row]
    assert best.manifest["scores"]["validation_loss"] == min(losses)
    assert not (run / "model").exists()
    with Checkpoints(run, None, leave_out_frozen=True) as checkpoints:
        assert checkpoints.latest() == 50
    sizes = [path.stat().st_size for path in (run / "checkpoints" / "50").rglob("*") if path.is_file()]
    assert sum(sizes) < 400_000  # the base alone has twice that
    assert UniToken.load(adapter=run / "adapter").params["adapter"]["up"]["kernel"].shape == (16, 32)


def test_resumed_is_uninterrupted_bit_for_bit(finished, tmp_path):
    config, _, expected = finished
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, validate_every=0, keep_best=False)
    )
    loop.train(config, tmp_path / "run", progress=None)
    with Checkpoints(tmp_path / "run", None, leave_out_frozen=True) as checkpoints:
        assert checkpoints.latest() == 50
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "50")
    shutil.rmtree(tmp_path / "run" / "adapter")
    state = loop.train(config, tmp_path / "run", progress=None)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, expected.opt_state)


@pytest.mark.parametrize("frozen_dtype", ["bfloat16", "int8"])
def test_the_base_may_be_held_in_fewer_bits(tmp_path, frozen_dtype):
    config = lora_config(tmp_path, steps=2, save_every=1, frozen_dtype=frozen_dtype)
    state = loop.train(config, tmp_path / "run", progress=None)
    kernel = state.frozen["decoder/layers/mlp/up/kernel"]
    assert jax.tree.leaves(kernel)[0].dtype == frozen_dtype
    assert state.frozen["decoder/layers/mlp/up/lora_scale"].dtype == np.float32
    assert np.isfinite(sum(float(np.abs(leaf).sum()) for leaf in state.params.values()))
    # The same step again: what is in the checkpoint and the base make the whole state.
    again = loop.train(config, tmp_path / "run", progress=None)
    jax.tree.map(np.testing.assert_array_equal, again.frozen, state.frozen)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": {"init_from": ""}}, "lora.rank needs a model to start from"),
        ({"lora": {"targets": "no_such"}}, "lora.targets: 'no_such' finds no kernel"),
        ({"lora": {"rank": 0}}, "finds no parameter"),
        (
            {"train": {"frozen_dtype": "int8"}, "optimizer": {"groups": (ParameterGroup("decoder/", 1.0),)}},
            "which the run would hold in int8",
        ),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_read(tmp_path, monkeypatch, changes, problem):
    config = lora_config(tmp_path)
    for section, values in changes.items():
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **values)}
        )
    monkeypatch.setattr(loop, "starting_point", None)
    with pytest.raises(ValueError, match=problem):
        loop.train(config, tmp_path / "run", progress=None)


def test_another_base_is_refused_when_a_run_goes_on(finished, tmp_path):
    config, _, _ = finished
    start = tmp_path / "start"
    save_model(start, config.model, tiny_params(), UniToken.load(config.train.init_from).tokenizer)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(start)))
    loop.train(config, tmp_path / "run", progress=None)
    changed = jax.tree.map(np.array, tiny_params())
    changed["decoder"]["layers"]["mlp"]["up"]["kernel"] *= 1.01
    save_model(start, config.model, changed, UniToken.load(start).tokenizer)
    with pytest.raises(ValueError, match="is another model"):
        loop.train(config, tmp_path / "run", progress=None)
