"""Conversions that must fail whole, and say everything that is wrong."""

import json
import os

import numpy as np
import pytest

from tests.helpers.released_files import OPTIONS, sources
from tests.helpers.tiny_model import tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import load_settings
from unitoken_jax.convert.from_torch import convert
from unitoken_jax.convert.torch.readers import read_safetensors
from unitoken_jax.convert.torch.report import ConversionError
from unitoken_jax.convert.torch.writers import write_safetensors


def test_all_problems_in_one_report_and_nothing_left(copy, tmp_path):
    path = sorted(copy.glob("model-*.safetensors"))[0]
    tensors = {name: tensor.read().copy() for name, tensor in read_safetensors(path).items()}
    first = next(iter(tensors))
    tensors[first] = np.concatenate([tensors[first]] * 2)
    write_safetensors(path, {**tensors, "model.strange": np.zeros(3, np.float32)})
    sorted(copy.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ConversionError) as caught:
        convert(copy, out=tmp_path / "m", **sources(copy))
    message = str(caught.value)
    for part in (
        f"shape: {first} in {path.name} is",
        "which is not there",
        "surplus: model.strange",
        "missing: ",
    ):
        assert part in message, message
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy"]


def test_a_save_that_fails_leaves_nothing(release, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tiny_tokenizer()), "save", full)
    with pytest.raises(OSError, match="no space left"):
        convert(release, out=tmp_path / "m", **sources(release))
    assert not os.listdir(tmp_path)


def test_a_tower_of_unknown_settings_is_asked_for(release, tmp_path):
    with pytest.raises(ConversionError, match=r"are not SO400M/14-384's .*: give --siglip"):
        convert(release, out=tmp_path / "m", options=OPTIONS)


def test_a_missing_shard_is_named_before_what_follows_from_it(copy, tmp_path):
    """Without the files that hold the vision tower, this is no decoder alone, nor is SigLIP asked for."""
    table = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    lost = {file for name, file in table.items() if name.startswith(("vit.", "adapter."))}
    for file in lost:
        (copy / file).unlink()
    for given in ({}, sources(copy)):
        with pytest.raises(ConversionError, match=r"which is not there") as caught:
            convert(copy, out=tmp_path / "m", **given)
        assert all(file in str(caught.value) for file in lost)


@pytest.mark.parametrize(
    "changes", [{"resample": 2}, {"image_mean": [0.4, 0.5, 0.5]}, {"size": {"height": 9, "width": 9}}]
)
def test_pixels_prepared_otherwise_are_refused(copy, tmp_path, changes):
    (copy / "SigLIP" / "preprocessor_config.json").write_text(json.dumps(changes))
    with pytest.raises(ConversionError, match=rf"preprocessor_config\.json: '{next(iter(changes))}' is"):
        convert(copy, out=tmp_path / "m", **sources(copy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "'hidden_size' is 'wide'; expected int"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_scaling": {"factor": 2}}, "only None is known"),
        ({"num_key_value_heads": 3}, "do not divide evenly"),
        ({"architectures": "AnyRes"}, "expected a list of names"),
        ({"architectures": []}, "give --resolution"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "Llava.*give --resolution"),
        ({"mask_image_logits": True}, "only False is known"),
        ({"num_hidden_layers": 10**12}, "is 1000000000000; expected 1 to 1000"),
        ({"rope_theta": float("nan")}, "expected a positive number"),
        ({"dropout": 1.0}, "expected 0 to less than 1"),
    ],
)
def test_wrong_settings_are_named(copy, tmp_path, changes, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConversionError, match=rf"config\.json.*{message}"):
        convert(copy, out=tmp_path / "m", **sources(copy))


def test_two_vqgans_in_a_folder_are_refused_by_name(copy, tmp_path):
    (copy / "chameleon" / "tokenizer" / "vqgan.ckpt").touch()
    with pytest.raises(ConversionError, match=r"has both vqgan\.ckpt and vqgan\.safetensors"):
        convert(copy, out=tmp_path / "m", **sources(copy))


def test_the_newer_spelling_of_rotary_settings_is_converted(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    (copy / "config.json").write_text(json.dumps(config))
    convert(copy, out=tmp_path / "m", **sources(copy))
    assert load_settings(tmp_path / "m")[0].decoder.rope_theta == 1e6
