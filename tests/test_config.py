"""Frozen dataclasses to and from plain values."""

import dataclasses
import json
import math
import pickle
import re
import typing

import pytest

from unitoken_jax.config import (
    Config,
    DecoderConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    SequenceConfig,
    SiglipConfig,
    TrainConfig,
    VQConfig,
    differences,
    from_dict,
    published_sequence,
    to_dict,
)
from unitoken_jax.setting_ranges import Checked, SettingError


def test_json_round_trip():
    config = from_dict(
        Config,
        {
            "data": {"sources": [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl"}], "rows": 3},
            "optimizer": {"groups": [{"pattern": "^adapter/", "learning_rate": 1e-4}]},
            "model": {"sequence": {"grids": [[2, 2]], "image_size": [64, 96]}},
        },
    )
    assert config.data.sources[0].weight == 2.0
    assert isinstance(config.data.sources[0].weight, float)
    assert config.model.sequence.grids == ((2, 2),)
    assert config.model.sequence.image_size == (64, 96)
    again = from_dict(Config, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)


def test_silent_fields_keep_their_defaults():
    assert from_dict(Config, {}) == Config()
    assert from_dict(Config, {"train": {"steps": 7}}) == dataclasses.replace(
        Config(), train=dataclasses.replace(Config().train, steps=7)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"unknown config key trian\. Did you mean train\?"),
        ({"train": {"stps": 3}}, r"unknown config key train\.stps\. Did you mean train\.steps\?"),
        ({"mesh": {"zzz": 3}}, r"unknown config key mesh\.zzz\. Known here: data, fsdp, tensor"),
        ({"train": {"steps": "many"}}, r"config key train\.steps is 'many'; expected int"),
        ({"train": {"steps": True}}, r"config key train\.steps is True; expected int"),
        ({"train": {"steps": 1.5}}, r"config key train\.steps is 1\.5; expected int"),
        ({"train": {"dtype": "float16"}}, r"train\.dtype is 'float16'; allowed: 'float32', 'bfloat16'"),
        ({"train": 3}, r"config key train is 3; expected TrainConfig"),
        ({"optimizer": {"b1": True}}, r"config key optimizer\.b1 is True; expected float"),
        ({"data": {"sources": {}}}, r"config key data\.sources is \{\}; expected"),
        ({"data": {"sources": [{"wieght": 1}]}}, r"data\.sources\[0\]\.wieght\. Did you mean .*\.weight"),
        (
            {"model": {"sequence": {"image_size": [1, 2, 3]}}},
            r"model\.sequence\.image_size is \[1, 2, 3\]",
        ),
        ({"model": {"sequence": {"grids": [[1, "a"]]}}}, r"grids\[0\]\[1\] is 'a'; expected int"),
    ],
)
def test_mistakes_name_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Config, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"row_pictures": 3}}, "config key data.row_pictures is now called data.row_images"),
        (
            {"data": {"sources": [{}, {"pictures": "x"}]}},
            "config key data.sources[1].pictures is now called data.sources[1].images",
        ),
        *(
            ({"model": {"sequence": {old: 1}}}, f"model.sequence.{old} is now called model.sequence.{new}")
            for old, new in {
                "picture_size": "image_size",
                "picture_labels": "image_labels",
                "picture_lead": "text_before_image",
                "soft_in_answers": "features_in_answers",
            }.items()
        ),
    ],
)
def test_an_old_key_is_told_its_new_name(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_dict(Config, values)


def test_an_old_key_of_another_section_is_merely_unknown():
    with pytest.raises(ValueError, match=r"unknown config key mesh\.pictures\. Known here: data"):
        from_dict(Config, {"mesh": {"pictures": 1}})


def test_published_values():
    assert SiglipConfig().grid == 27
    assert SiglipConfig().patches == 729
    assert SiglipConfig(image_size=60).patches == 16
    assert VQConfig().stride == 16
    assert VQConfig().codes == 8192
    assert ModelConfig().decoder.head_dim == 128
    assert Config().optimizer.clip_norm == 4.0
    assert Config().optimizer.z_loss == 1e-5


def test_published_sequence_differs_only_where_the_code_does():
    paper, code = SequenceConfig(), published_sequence()
    differing = {f.name for f in dataclasses.fields(paper) if getattr(paper, f.name) != getattr(code, f.name)}
    assert differing == {"supervise_sep", "features_in_answers", "text_before_image"}
    assert published_sequence(image_size=(64, 64)).image_size == (64, 64)


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 3


def test_differences_name_whole_keys_and_take_an_absent_section_for_an_empty_one():
    ours = {"train": {"steps": 20, "seed": 0}, "data": {"rows": [1, 2]}, "same": 1}
    theirs = {"train": {"steps": 10, "seed": 0}, "data": None, "same": 1, "old": "x"}
    expected = {"train.steps": (10, 20), "data.rows": (None, [1, 2]), "old": ("x", None)}
    assert differences(theirs, ours) == expected
    assert differences(ours, ours) == {}


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"steps": 0}, "steps is 0; expected 1 or more"),
        (TrainConfig, {"save_every": -1}, "save_every is -1; expected 1 or more"),
        (TrainConfig, {"seed": 2**32}, "seed is 4294967296; expected 0 to 4294967295"),
        (TrainConfig, {"spike_sigma": math.nan}, "spike_sigma is nan; expected 0 or more"),
        (TrainConfig, {"spike_window": 1}, "spike_window is 1; expected 2 or more"),
        (TrainConfig, {"profile_steps": -1}, "profile_steps is -1; expected 0 or more"),
        (OptimizerConfig, {"b1": 1.0}, "b1 is 1.0; expected 0 to less than 1"),
        (OptimizerConfig, {"clip_norm": 0.0}, "clip_norm is 0.0; expected a number above 0"),
        (GenerationConfig, {"speculate": -1}, "speculate is -1; expected 0 or more"),
        (VQConfig, {"channel_multipliers": (1, 0)}, r"channel_multipliers is \(1, 0\); expected 1 or more"),
        (SequenceConfig, {"grids": ((1, 0),)}, r"grids is \(\(1, 0\),\); expected 1 or more"),
        (DecoderConfig, {"heads": 3}, "width is 4096; expected a multiple of heads, which is 3"),
        (DecoderConfig, {"kv_heads": 5}, "heads is 32; expected a multiple of kv_heads, which is 5"),
        (DecoderConfig, {"depth": 10**6}, "depth is 1000000; expected 1 to 1000"),
        (SiglipConfig, {"patch_size": 500}, r"patch_size is 500; expected 384 \(image_size\) at most"),
    ],
)
def test_a_number_out_of_its_range_is_named(cls, values, message):
    with pytest.raises(SettingError, match=f"^config key {message}"):
        cls(**values)
    with pytest.raises(SettingError, match=f"^config key train.{message}"):
        from_dict(cls, values, "train.")


def test_its_error_can_be_sent_between_processes():
    assert str(pickle.loads(pickle.dumps(SettingError("a", "is 0")))) == "config key a is 0"


def test_every_number_of_a_config_has_a_range():
    """So that no number is forgotten: those that may be anything are named here."""
    anything = {f"MeshConfig.{axis}" for axis in ("data", "fsdp", "tensor")}
    anything |= {
        "VQConfig.attention_resolutions",
        "SequenceConfig.image_size",
    }  # which has a check that lists
    for cls in Checked.__subclasses__():
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            text = str(hint)
            numbers = re.findall(r"\b(int|float)\b", text)
            assert len(numbers) == text.count("Annotated") or f"{cls.__name__}.{name}" in anything, (
                cls,
                name,
            )
