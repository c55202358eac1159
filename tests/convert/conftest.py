"""The tiny model as a model directory and as a published checkpoint, for all of this folder."""

import shutil

import pytest

from tests.helpers.released_files import PUBLISHED, published_params
from tests.helpers.tiny_model import tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.convert.to_torch import export


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "published"
    save_model(path, PUBLISHED, published_params(), tiny_tokenizer())
    return path


@pytest.fixture(scope="session")
def release(model):
    export(model, model.with_name("release"), vqgan=True, shard_bytes=20_000)
    return model.with_name("release")


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release, tmp_path / "copy")
