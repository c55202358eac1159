"""Settings that change the computation: read, in either spelling, or refused by name, in every file."""

import json

import pytest
import yaml

from unitoken_jax.config import ModelConfig
from unitoken_jax.convert.torch import configs
from unitoken_jax.convert.torch.report import ConversionError

DEFAULTS = ModelConfig()
DECODER = configs.published_config(DEFAULTS, {}, "bfloat16")
SIGLIP = configs.published_siglip(DEFAULTS.siglip)
VQ = configs.published_vq(DEFAULTS.vq)
PREPROCESSOR = {  # as transformers 4.43 writes it
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}


def without(table, *keys):
    return {key: value for key, value in table.items() if key not in keys}


NO_ROPE = without(DECODER, "rope_theta", "rope_scaling")


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": None, "rope_scaling": None, "rope_parameters": None}, 10000.0),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6),
        ({"rope_parameters": {"rope_theta": 1000000}, "rope_scaling": None}, 1e6),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 1.0}, "rope_theta": 1e6}, 1e6),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}, 1e6),
    ],
)
def test_the_base_of_the_rotary_embedding_in_any_spelling(changes, theta):
    assert configs.decoder_config(NO_ROPE | changes, "config.json").rope_theta == theta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "linear", "factor": 4.0}, r"\(rope_parameters\): 'rope_type' is 'linear'"),
        ({"type": "dynamic"}, r"\(rope_parameters\): 'type' is 'dynamic'"),
        ({"rope_theta": 1e6, "factor": 4.0}, r"\(rope_parameters\): 'factor' is 4.0"),
        ({"partial_rotary_factor": 0.5}, r"'partial_rotary_factor' is 0.5; only 1.0"),
        ({"rope_theta": "1e6"}, r"'rope_theta' is '1e6'; expected"),
        ({"rope_theta": -1.0}, r"'rope_theta' is -1.0; expected a positive number"),
        ({"full_attention": {"rope_type": "yarn"}}, r"\(full_attention\): 'rope_type' is 'yarn'"),
        ({"a": {"rope_theta": 1e6}, "b": {"rope_theta": 1e4}}, r"several bases.*1000000.0.*10000.0"),
        ([1e6], r"'rope_parameters' is \[1000000.0\]; expected dict"),
    ],
)
def test_other_rotary_embeddings_are_refused_in_both_spellings(changes, message):
    with pytest.raises(ConversionError, match=rf"config\.json.*{message}"):
        configs.decoder_config(NO_ROPE | {"rope_parameters": changes}, "config.json")
    with pytest.raises(ConversionError, match=message.replace("parameters", "scaling")):
        configs.decoder_config(NO_ROPE | {"rope_scaling": changes}, "config.json")


def test_two_spellings_that_disagree_are_refused():
    values = NO_ROPE | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}
    with pytest.raises(
        ConversionError, match=r"several bases.*rope_theta 10000.0.*rope_parameters\) 1000000.0"
    ):
        configs.decoder_config(values, "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"attention_dropout": 0.1},
        {"attention_multiplier": 0.5},
        {"auto_map": {"AutoModel": "modeling.Other"}},
        {"head_dim": 64},
        {"hidden_act": "gelu"},
        {"hidden_act": None},
        {"logit_scale": 0.0625},
        {"mlp_bias": True},
        {"partial_rotary_factor": 0.5},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"rope_base": 1e6},
        {"rotary_emb_base": 1e6},
        {"sliding_window": 4096},
        {"transformers_weights": "other.safetensors"},
    ],
)
def test_whatever_else_may_change_the_decoder_is_refused(changes):
    (key,) = changes
    with pytest.raises(ConversionError, match=rf"^config\.json: '{key}' is"):
        configs.decoder_config(DECODER | changes, "config.json")


def test_what_changes_nothing_is_read_over():
    for changes in (
        {"head_dim": 128},
        {"sliding_window": None},
        {"hidden_act": "swish"},
        {"use_cache": False},
    ):
        assert configs.decoder_config(DECODER | changes, "config.json") == DEFAULTS.decoder
    table = {"vq_config": {"attn_type": None, "attn_resolutions": [32], "out_channels": 3}}
    found = configs.vq_config_of_json(DECODER | table, "config.json")
    assert (found.mid_attention, found.attention_resolutions) == (False, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_type": "linear"},
        {"double_latent": True},
        {"dropout": 0.1},
        {"in_channels": 4},
        {"quantizer": "fsq"},
    ],
)
def test_other_vqgans_in_a_config_are_refused(changes):
    (key,) = changes
    values = DECODER | {"vq_config": DECODER["vq_config"] | changes}
    with pytest.raises(ConversionError, match=rf"^config\.json \(vq_config\): '{key}' is"):
        configs.vq_config_of_json(values, "config.json")


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("ddconfig", {"attn_type": "linear"}),
        ("ddconfig", {"double_z": True}),
        ("ddconfig", {"dropout": 0.1}),
        ("ddconfig", {"give_pre_end": True}),
        ("ddconfig", {"padding_mode": "circular"}),
        ("ddconfig", {"resamp_with_conv": False}),
        ("ddconfig", {"tanh_out": True}),
        ("params", {"remap": "indices.npy"}),
        ("model", {"target": "taming.models.vqgan.GumbelVQ"}),
    ],
)
def test_other_vqgans_in_a_yaml_are_refused(tmp_path, where, changes):
    values = json.loads(json.dumps(VQ))
    tables = {"model": values["model"], "params": values["model"]["params"]}
    tables["ddconfig"] = tables["params"]["ddconfig"]
    tables[where] |= changes
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(values))
    (key,) = changes
    with pytest.raises(ConversionError, match=rf"vqgan\.yaml.*: '{key}' is"):
        configs.vq_config_of_yaml(tmp_path / "vqgan.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_dropout": 0.1},
        {"hidden_act": "gelu"},
        {"model_type": "clip_vision_model"},
        {"num_channels": 1},
        {"qkv_bias": False},
        {"rope_parameters": {"rope_theta": 100.0}},
    ],
)
def test_other_towers_are_refused(tmp_path, changes):
    (key,) = changes
    vision = SIGLIP["vision_config"] | changes
    alone = [] if key == "model_type" else [vision]  # which says that it is a tower
    for values in (SIGLIP | {"vision_config": vision}, *alone):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConversionError, match=rf"config\.json: '{key}' is"):
            configs.siglip_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP | {"fusion": "early"}))
    with pytest.raises(ConversionError, match=r"config\.json: 'fusion' is"):
        configs.siglip_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": {"height": 384, "width": 384}},
        {"do_center_crop": True},
        {"do_normalize": False},
        {"do_pad": True},
        {"do_rescale": False},
        {"do_resize": False},
        {"image_processor_type": "CLIPImageProcessor"},
        {"image_std": [0.2, 0.2, 0.2]},
        {"rescale_factor": 1.0},
        {"size": {"shortest_edge": 384}},
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_prepared_otherwise_are_refused(tmp_path, file, changes):
    def write(values):
        values = values if file.startswith("pre") else {"image_processor": values, "processor_class": "S"}
        (tmp_path / file).write_text(json.dumps(values))

    write(PREPROCESSOR | {"do_pad": None, "device": None, "crop_size": None})
    configs.check_preprocessor(tmp_path, DEFAULTS.siglip)
    write(PREPROCESSOR | changes)
    with pytest.raises(ConversionError, match=rf"{file}.*: '{next(iter(changes))}' is"):
        configs.check_preprocessor(tmp_path, DEFAULTS.siglip)


def test_all_that_transformers_writes_is_known(tmp_path):
    """Whole default configs, with every key that the library gives them."""
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    values = transformers.ChameleonConfig(vocabulary_map={"<image>": 5}).to_dict()
    config = configs.decoder_config(values, "config.json")
    assert config.qk_norm_shards == 1
    assert configs.vq_config_of_json(values, "config.json") == DEFAULTS.vq
    processor = transformers.SiglipImageProcessor(size={"height": 224, "width": 224})
    (tmp_path / "preprocessor_config.json").write_text(processor.to_json_string())
    for siglip in (transformers.SiglipConfig(), transformers.SiglipVisionConfig()):
        (tmp_path / "config.json").write_text(siglip.to_json_string(use_diff=False))
        configs.check_preprocessor(tmp_path, configs.siglip_config(tmp_path))
