"""The models inside the package: where they are, and when one of them is meant."""

import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken, pretrained
from unitoken_jax.checkpoint.model_directory import save_model


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
