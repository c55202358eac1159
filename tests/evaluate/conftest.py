"""The tiny model as a model directory, for all of this folder."""

import pytest

from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path
