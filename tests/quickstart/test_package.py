"""What puts a run's models into the package: what it writes, and what it leaves alone."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_model, load_settings, save_model
from unitoken_jax.convert.from_torch import inspect
from unitoken_jax.quickstart import package

SUMMARY = {"general": 0.9, "question_kinds": {"count": 0.8}, "minutes": 48.61, "peak_gib": 2.0}
SUMMARY |= {"versions": {"python": "3.11.7", "jax": "0.10.2"}, "cpu_count": 2}


@pytest.fixture
def run(tmp_path):
    """The directory of a run that has ended, with models of the tiny size."""
    folder = tmp_path / "run"
    huge = tiny_params() | {"adapter": _with_a_large_value(tiny_params()["adapter"])}
    save_model(folder / "model", CONFIG, tiny_params(), tiny_tokenizer())
    save_model(folder / "base" / "model", CONFIG, huge, tiny_tokenizer())
    settings = {"minutes": 60.0, "seed": 3, "model": {"siglip": {}}}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def _with_a_large_value(tree: dict) -> dict:
    """A copy whose first array has a value that float16 does not."""
    name, value = next(iter(tree.items()))
    if isinstance(value, dict):
        return tree | {name: _with_a_large_value(value)}
    value = value.copy()
    value.flat[0] = 1e6
    return tree | {name: value}


def test_both_models_are_written_with_how_they_were_made(run, tmp_path, capsys):
    (out := tmp_path / "pretrained").mkdir()
    (out / "CARD.md").write_text("what it can")
    package.main(["--run", str(run), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["CARD.md", "base", "finished"]
    printed = capsys.readouterr().out
    assert f"{out / 'base'}: 0." in printed
    assert "in float32, which float16 would change: adapter/" in printed
    for name, source in package.MODELS.items():
        _, _, manifest = load_settings(out / name)
        assert manifest["settings"] == {"minutes": 60.0, "seed": 3}
        assert (manifest["minutes"], manifest["versions"]) == (48.6, SUMMARY["versions"])
        assert manifest["created"] == load_settings(run / source)[2]["created"]
        assert len(manifest["notes"]) == (name == "base")
        assert {"minutes: 48.6", "settings: {'minutes': 60.0, 'seed': 3}"} < set(inspect(out / name))
        scores = {"general": 0.9, "question_kinds": {"count": 0.8}}
        assert manifest.get("scores") == (scores if name == "finished" else None)
        kernel = load_model(out / name).params["decoder"]["lm_head"]["kernel"]
        expected = tiny_params()["decoder"]["lm_head"]["kernel"].astype(np.float16)
        assert kernel.dtype == np.float16
        np.testing.assert_array_equal(kernel, expected)


def test_nothing_is_replaced_by_what_is_too_large_or_not_finished(run, tmp_path):
    out = tmp_path / "pretrained"
    for name in package.MODELS:
        (out / name).mkdir(parents=True)
        (out / name / "here").touch()
    with pytest.raises(ValueError, match=r"take 0\.\d MB .* at most 0\.0 MB: nothing"):
        package.package_models(run, out, max_bytes=1000)
    shutil.rmtree(run / "model")
    with pytest.raises(FileNotFoundError, match=r"run/model"):
        package.package_models(run, out)
    (run / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json does not exist: name the directory"):
        package.package_models(run, out)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "base",
        "base/here",
        "finished",
        "finished/here",
    ]
