"""Whatever a settings file of a conversion says: it is read, or refused by the file's name and the key's."""

import json
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import as_json, damaged_bytes, damaged_tree
from tests.helpers.reference import REFERENCE, needs_reference
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector
from unitoken_jax.convert.torch.sources import open_sources
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer

pytestmark = [needs_reference, pytest.mark.slow]  # each input parses a tokenizer
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


@given(data=st.data())
def test_a_settings_file(folder, data):
    name = data.draw(st.sampled_from(FILES))
    path = folder / name
    original = path.read_bytes()
    tree = yaml.safe_load(original) if path.suffix == ".yaml" else json.loads(original)
    tree.pop("vocabulary_map", None)  # most of the file, and what the tokenizer says as well
    try:
        path.write_bytes(data.draw(damaged_tree(tree).map(as_json) | damaged_bytes(original)))
        settings(folder)
    except (ConversionError, OSError) as error:
        message = str(error)
    else:
        message = path.name
    finally:
        path.write_bytes(original)
    # What a weights' index does not say is named by the tensors and the files that they are in.
    assert path.name in message or "index" in message, message


def test_the_files_are_all_there_and_read(folder):
    assert all((folder / name).is_file() for name in FILES)
    assert settings(folder).decoder.width == 64
