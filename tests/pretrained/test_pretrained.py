"""The models inside the package: where they are, and when one of them is meant."""

import numpy as np
import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken, pretrained
from unitoken_jax.checkpoint.model_directory import open_model, save_model
from unitoken_jax.quickstart.package import MAX_BYTES


def test_without_a_path_the_packages_model_is_loaded_or_a_quickstarts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"no quickstart/model here, and unitoken_jax was installed"):
        UniToken.load()
    for path, note in (("package/finished", "ours"), ("quickstart/model", "theirs")):
        save_model(tmp_path / path, CONFIG, tiny_params(), tiny_tokenizer(), {"note": note})
        assert UniToken.load().manifest["note"] == note
    assert UniToken.load(pretrained.model_path()).manifest["note"] == "ours"


def test_a_model_that_the_package_does_not_have_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no model 'large'; it has base, finished"):
        pretrained.model_path("large")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"without its model 'base'.*install it again"):
        pretrained.model_path("base")


def test_the_models_are_small_and_say_how_they_were_made():
    files = [path for name in pretrained.NAMES for path in pretrained.model_path(name).rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= MAX_BYTES
    shapes = []
    for name in pretrained.NAMES:
        _, params, _, manifest = open_model(pretrained.model_path(name))
        assert {"recipe", "settings", "minutes", "versions", "licences"} <= set(manifest)
        assert manifest["settings"]["from_scratch"]
        narrow = [path for path, leaf in params.shapes.items() if leaf.dtype == np.float16]
        assert len(narrow) + len(manifest["notes"]) == len(params.shapes)
        shapes.append({path: tuple(leaf.shape) for path, leaf in params.shapes.items()})
    assert shapes[0] == shapes[1]
    assert {"general", "textread", "generation"} <= set(manifest["scores"])
