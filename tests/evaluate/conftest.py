"""The tiny model as a model directory, and an adapter of it, for all of this folder."""

import pytest

from tests.checkpoint.test_adapter import LORA, trained
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.adapter import Base, save_adapter
from unitoken_jax.checkpoint.model_directory import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path


@pytest.fixture(scope="session")
def adapter(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "tuned"
    save_adapter(path, trained(), LORA, Base.of(model))
    return path
