"""Whatever a settings file says, published or of a model directory: it is read, or refused by its name."""

import json
import re
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.test_adapter import LORA, trained
from tests.fuzz.damage import as_json, damaged_bytes, damaged_tree
from tests.helpers.reference import REFERENCE, needs_reference
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.adapter import SETTINGS, WEIGHTS, Base, save_adapter
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector
from unitoken_jax.convert.torch.sources import open_sources
from unitoken_jax.inspection.adapter import describe_adapter
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.unitoken import UniToken

pytestmark = pytest.mark.slow  # each input parses a tokenizer
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "SigLIP/config.json",
    "SigLIP/preprocessor_config.json",
    "chameleon/tokenizer/vqgan.yaml",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the recorded run's checkpoint."""
    folder = tmp_path_factory.mktemp("settings") / "checkpoint"
    shutil.copytree(REFERENCE, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def settings(folder):
    report = ProblemCollector()
    siglip, vqgan = folder / "SigLIP", folder / "chameleon/tokenizer"
    sources = open_sources(folder, siglip, vqgan, report, image_size=64)
    report.check(str(folder))
    validate_config(sources.config, Tokenizer.load(sources.tokenizer).vocabulary)
    return sources.config


def said_of(path, draw, tree, read, refusals) -> str:
    """What `read` says as it refuses file `path` with one thing damaged, or the file's name if it does not.

    `tree` is the file's content, of which a value is damaged, or its bytes are; the file is put back.
    """
    original = path.read_bytes()
    try:
        path.write_bytes(draw(damaged_tree(tree).map(as_json) | damaged_bytes(original)))
        read()
    except refusals as error:
        return str(error)
    finally:
        path.write_bytes(original)
    return path.name


@needs_reference
@given(data=st.data())
def test_a_settings_file(folder, data):
    path = folder / data.draw(st.sampled_from(FILES))
    text = path.read_text()
    tree = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    tree.pop("vocabulary_map", None)  # most of the file, and what the tokenizer says as well
    message = said_of(path, data.draw, tree, lambda: settings(folder), (ConversionError, OSError))
    # What a weights' index does not say is named by the tensors and the files that they are in.
    assert path.name in message or "index" in message, message


@needs_reference
def test_the_files_are_all_there_and_read(folder):
    assert all((folder / name).is_file() for name in FILES)
    assert settings(folder).decoder.width == 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path


@given(data=st.data())
def test_a_file_of_a_model_directory(model, data):
    path = model / data.draw(st.sampled_from(["config.json", "manifest.json", "tokenizer.json"]))
    tree = json.loads(path.read_text())
    message = said_of(path, data.draw, tree, lambda: UniToken.outline(model), (ValueError, OSError))
    # Another size does not fit the parameters, or the tokenizer; another format is the whole directory's.
    assert re.search(rf"{path.name}|params|tokenizer|directory of format", message), message


@pytest.fixture(scope="module")
def adapter(model):
    path = model.parent / "tuned"
    save_adapter(path, trained(), LORA, Base.of(model), {"step": 3, "scores": {"validation_loss": 0.5}})
    return path


@given(data=st.data())
def test_a_file_of_an_adapter(adapter, model, data):
    """Told what it is, and given to its base; the weights' header is damaged as bytes are."""
    path = adapter / data.draw(st.sampled_from([SETTINGS, WEIGHTS]))
    tree = json.loads((adapter / SETTINGS).read_text())

    def read():
        describe_adapter(adapter)
        UniToken.outline(model, adapter)

    message = said_of(path, data.draw, tree, read, (ValueError, OSError))
    assert re.search(rf"{path.name}|{adapter}", message), message
