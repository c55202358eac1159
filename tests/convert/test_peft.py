"""Adapter folder -> the files of `peft` -> adapter folder, and the ways in which such files can differ."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.adapters import save_trained, trained_params
from tests.helpers.released_files import PUBLISHED
from tests.helpers.tiny_model import CONFIG, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.adapter import Base, load_adapter, save_adapter
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.cli.main import main
from unitoken_jax.config import LoraConfig
from unitoken_jax.convert import export_peft, import_peft
from unitoken_jax.convert.torch import peft
from unitoken_jax.convert.torch.readers import read_safetensors
from unitoken_jax.convert.torch.report import ConversionError
from unitoken_jax.convert.torch.writers import write_safetensors

LORA = LoraConfig(
    rank=3, alpha=5.0, dropout=0.25, targets="layers/(attention|mlp)/|siglip/layers/(q|up)/|adapter/up"
)
WHOLE = (
    *("adapter/down/kernel", "adapter/down/bias", "siglip/norm/scale", "siglip/patch_embed/kernel"),
    *("decoder/embed/embedding", "decoder/lm_head/kernel", "decoder/norm/scale"),
    "decoder/layers/mlp_norm/scale",
    *(f"decoder/layers/attention/{name}_norm/{leaf}" for name in "qk" for leaf in ("scale", "bias")),
)
MLP = LoraConfig(rank=2, alpha=6.0, targets="mlp/(up|down)/")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return save_trained(tmp_path_factory.mktemp("all") / "tuned", model, PUBLISHED, LORA, WHOLE)


@pytest.fixture(scope="module")
def exported(adapter, tmp_path_factory):
    path = tmp_path_factory.mktemp("all") / "peft"
    export_peft(adapter, path)
    return path


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "peft")


@pytest.fixture(scope="module")
def small(model, tmp_path_factory):
    """Pairs on two linear layers of the decoder, and a norm: (adapter, exported)."""
    root = tmp_path_factory.mktemp("small")
    save_trained(root / "tuned", model, PUBLISHED, MLP, ("decoder/norm/scale",))
    export_peft(root / "tuned", root / "peft")
    return root / "tuned", root / "peft"


def arrays(path) -> dict:
    return {name: np.array(tensor.read()) for name, tensor in read_safetensors(path).items()}


def change(folder, **values) -> None:
    """Sets keys of adapter_config.json; one that is None goes."""
    settings = json.loads((folder / peft.CONFIG).read_text()) | values
    (folder / peft.CONFIG).write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def same_params(one, other, **tolerance) -> None:
    found, expected = load_adapter(one).params, load_adapter(other).params
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == np.float32
        np.testing.assert_allclose(found[path], value, **({"rtol": 0} | tolerance), err_msg=path)


def test_out_and_in_is_bit_exact(model, adapter, exported, tmp_path):
    """SigLIP, the MLP adapter, norms with a row a head, embedding and output layer too."""
    lines = import_peft(exported, model, tmp_path / "back")
    assert "rank 3, alpha 5" in lines[0]
    same_params(tmp_path / "back", adapter)
    before, after = load_adapter(adapter), load_adapter(tmp_path / "back")
    assert after.base.fingerprint == before.base.fingerprint
    assert (after.lora.scale, after.lora.dropout) == (before.lora.scale, 0.25)
    assert len(after.manifest["sources"][peft.WEIGHTS]["sha256"]) == 64
    export_peft(tmp_path / "back", tmp_path / "again", model=model)
    for name in (peft.CONFIG, peft.WEIGHTS, peft.UNITOKEN_WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_the_files_are_those_of_peft(exported, adapter):
    settings = json.loads((exported / peft.CONFIG).read_text())
    assert settings["peft_type"] == "LORA"
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 5, False)
    assert settings["target_modules"] == sorted(
        [*(f"{name}_proj" for name in "qkvo"), "gate_proj", "up_proj", "down_proj"]
    )
    assert settings["modules_to_save"] == sorted(
        ["k_norm", "lm_head", "model.embed_tokens", "model.norm", "post_attention_layernorm", "q_norm"]
    )
    tensors, params = arrays(exported / peft.WEIGHTS), load_adapter(adapter).params
    for name, path in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
        found = tensors[f"base_model.model.model.layers.1.self_attn.v_proj.{name}.weight"]
        np.testing.assert_array_equal(found, params[f"decoder/layers/attention/v/{path}"][1].T)
    assert tensors["base_model.model.model.layers.0.self_attn.q_norm.weight"].shape == (4, 8)
    assert not any("vit." in name or "adapter." in name for name in tensors)
    beside = arrays(exported / peft.UNITOKEN_WEIGHTS)
    assert "base_model.model.vit.encoder.layers.0.mlp.fc1.lora_A.weight" in beside
    assert "base_model.model.adapter.2.bias" in beside


def renamed(folder, rename) -> None:
    write_safetensors(
        folder / peft.WEIGHTS, {rename(name): value for name, value in arrays(folder / peft.WEIGHTS).items()}
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
        lambda name: name.replace("model.norm.weight", "model.norm.modules_to_save.default.weight"),
    ],
    ids=["no prefix", "adapter's name inside", "adapter's name in a whole module"],
)
def test_names_as_other_tools_write_them(model, small, tmp_path, rename):
    tuned, exported = small
    folder = shutil.copytree(exported, tmp_path / "peft")
    renamed(folder, rename)
    import_peft(folder, model, tmp_path / "back")
    same_params(tmp_path / "back", tuned)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_what_it_is(model, small, tmp_path, dtype):
    folder = shutil.copytree(small[1], tmp_path / "peft")
    tensors = {name: value.astype(dtype) for name, value in arrays(folder / peft.WEIGHTS).items()}
    write_safetensors(folder / peft.WEIGHTS, tensors)
    import_peft(folder, model, tmp_path / "back")
    found = load_adapter(tmp_path / "back").params["decoder/layers/mlp/up/lora_a"]
    np.testing.assert_array_equal(
        found[1].T, tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].astype(np.float32)
    )
    same_params(tmp_path / "back", small[0], atol=2e-2)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"lora_alpha": 7.5}, 7.5 / 2),
        ({"alpha_pattern": {"mlp.up_proj": 16, "down_proj": 16}}, 16 / 2),
        ({"r": 8, "rank_pattern": {r"layers\.\d\.mlp\..*": 2}}, 6 / 2),
        ({"target_modules": r"model\.layers\.\d+\.mlp\.(up|down)_proj"}, 6 / 2),
        (
            {"target_modules": "all-linear", "exclude_modules": ["self_attn.q_proj", r"k_proj", "v_proj"]},
            None,
        ),
        ({"target_modules": ["up_proj", "down_proj", "gate_proj"], "exclude_modules": ".*gate_proj"}, 6 / 2),
        ({"init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "peft_version": "0.19.1"}, 6 / 2),
    ],
)
def test_the_scale_is_what_the_settings_say(model, small, tmp_path, values, scale):
    folder = shutil.copytree(small[1], tmp_path / "peft")
    change(folder, **values)
    if scale is None:
        with pytest.raises(ConversionError, match=r"missing: model\.layers\.0\.self_attn\.o_proj\.lora_A"):
            import_peft(folder, model, tmp_path / "back")
        return
    import_peft(folder, model, tmp_path / "back")
    assert load_adapter(tmp_path / "back").lora.scale == scale
    same_params(tmp_path / "back", small[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "'use_dora' is True"),
        ({"bias": "lora_only"}, "'bias' is 'lora_only'"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' is True"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' is 'pissa'"),
        ({"layers_to_transform": [0]}, "'layers_to_transform' is"),
        ({"trainable_token_indices": [3]}, "'trainable_token_indices' is"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is"),
        ({"peft_type": "IA3"}, "'peft_type' is 'IA3'"),
        ({"lora_of_next_year": 1}, "'lora_of_next_year' is 1; it may change what is computed"),
        ({"alpha_pattern": {"up_proj": 9}}, r"tells pairs apart .*alpha 6.0.*alpha 9"),
        ({"rank_pattern": {"up_proj": "2"}}, "expected numbers by module"),
        ({"rank_pattern": {"(up|down)_proj": -1}}, "r is -1"),
        ({"rank_pattern": {"(": 1}}, "no regular expression"),
        ({"lora_alpha": None}, "has no 'lora_alpha'"),
        ({"lora_alpha": 0}, "expected a positive number"),
        ({"lora_dropout": 1.0}, "'lora_dropout' is 1.0"),
        ({"target_modules": None}, "has no 'target_modules'"),
        ({"target_modules": ["c_attn"]}, "names no linear layer of this model"),
        ({"target_modules": "["}, "no regular expression"),
        ({"target_modules": ["up_proj"]}, r"surplus: model\.layers\.0\.mlp\.down_proj\.lora_A\.weight"),
        ({"target_modules": ["layers.0.mlp.up_proj", "down_proj"]}, "here, every layer or none"),
        ({"modules_to_save": ["model.norm", "lm_head"]}, r"missing: lm_head\.weight"),
        ({"modules_to_save": []}, r"surplus: model\.norm\.weight"),
        ({"modules_to_save": [1]}, "expected names of modules"),
        ({"r": 3}, r"layers\.0\.mlp\.up_proj\.lora_A\.weight in .* is \(2, 32\); expected \(3, 32\)"),
        ({"auto_mapping": {"unitoken": {}}}, "is damaged"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(model, small, tmp_path, values, message):
    folder = shutil.copytree(small[1], tmp_path / "peft")
    change(folder, **values)
    with pytest.raises(ConversionError, match=message):
        import_peft(folder, model, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_every_missing_key_raises_and_so_does_a_surplus_one(model, copy, tmp_path):
    number = 0
    for file in (peft.WEIGHTS, peft.UNITOKEN_WEIGHTS):
        tensors = arrays(copy / file)
        for name in tensors:
            write_safetensors(copy / file, {key: value for key, value in tensors.items() if key != name})
            plain = name.removeprefix("base_model.model.")
            with pytest.raises(ConversionError, match=rf"(?s)1 problem:\s+missing: {plain} "):
                import_peft(copy, model, tmp_path / "back")
            number += 1
        write_safetensors(
            copy / file, tensors | {"base_model.model.model.side.lora_A.weight": np.zeros((3, 8))}
        )
        with pytest.raises(ConversionError, match=r"surplus: model\.side\.lora_A\.weight"):
            import_peft(copy, model, tmp_path / "back")
        write_safetensors(copy / file, tensors | {"lm_head.weight": np.zeros((3, 8)), **tensors})
        with pytest.raises(ConversionError, match=r"duplicate: .*lm_head\.weight"):
            import_peft(copy, model, tmp_path / "back")
        write_safetensors(copy / file, tensors)
    assert number == 51


def test_the_embedding_that_peft_saves_unasked_is_taken(model, small, tmp_path):
    folder = shutil.copytree(small[1], tmp_path / "peft")
    embedding = np.random.default_rng(0).normal(size=(PUBLISHED.decoder.vocab_size, 32)).astype(np.float32)
    name = "base_model.model.model.embed_tokens.weight"
    write_safetensors(folder / peft.WEIGHTS, {name: embedding, **arrays(folder / peft.WEIGHTS)})
    import_peft(folder, model, tmp_path / "back")
    np.testing.assert_array_equal(
        load_adapter(tmp_path / "back").params["decoder/embed/embedding"], embedding
    )
    write_safetensors(folder / peft.WEIGHTS, arrays(folder / peft.WEIGHTS) | {name: embedding[1:]})
    with pytest.raises(
        ConversionError, match=r"shape: .*embed_tokens\.weight in .* is \(399, 32\); expected \(400"
    ):
        import_peft(folder, model, tmp_path / "other")


def test_a_base_and_files_that_are_not_its_own(model, exported, copy, tmp_path):
    save_model(tmp_path / "other", CONFIG, tiny_params(), tiny_tokenizer())
    with pytest.raises(ConversionError, match=r"self_attn\.[qk]_norm\.weight.* differ within a shard"):
        import_peft(copy, tmp_path / "other", tmp_path / "back")
    params = {**tiny_params(), "adapter": {**tiny_params()["adapter"]}}
    save_trained(tmp_path / "tuned", tmp_path / "other", CONFIG, MLP)
    export_peft(tmp_path / "tuned", tmp_path / "small")
    params["adapter"]["up"] = {name: leaf + 1 for name, leaf in params["adapter"]["up"].items()}
    save_model(tmp_path / "another", CONFIG, params, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"small was trained on other .*another .*is another model"):
        import_peft(tmp_path / "small", tmp_path / "another", tmp_path / "back")
    (copy / peft.UNITOKEN_WEIGHTS).unlink()
    with pytest.raises(ConversionError, match=r"lacks unitoken\.safetensors, in which .* left 10 parameters"):
        import_peft(copy, model, tmp_path / "back")
    (copy / peft.WEIGHTS).unlink()
    with pytest.raises(
        ConversionError, match=r"has neither adapter_model\.safetensors nor adapter_model\.bin"
    ):
        import_peft(copy, model, tmp_path / "back")
    with pytest.raises(ConversionError, match="is no folder"):
        import_peft(tmp_path / "nowhere", model, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("lora", "whole", "message"),
    [
        (MLP, ("decoder/layers/mlp/up/kernel",), "up_proj whole and a pair beside it"),
        (MLP, ("decoder/layers/attention/q_norm/scale",), "lacks decoder/layers/attention/q_norm/bias"),
        (None, ("decoder/norm/scale",), "has no LoRA pairs"),
    ],
)
def test_what_peft_cannot_keep_is_refused(model, tmp_path, lora, whole, message):
    params = trained_params(PUBLISHED, lora or MLP, whole)
    kept = {path: value for path, value in params.items() if lora or path in whole}
    save_adapter(tmp_path / "tuned", kept, lora or LoraConfig(), Base.of(model))
    with pytest.raises(ValueError, match=message):
        export_peft(tmp_path / "tuned", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_pairs_of_siglip_alone(model, tmp_path):
    lora = LoraConfig(rank=2, alpha=1.0, rslora=True, targets="^siglip/layers/q/")
    save_trained(tmp_path / "tuned", model, PUBLISHED, lora)
    export_peft(tmp_path / "tuned", tmp_path / "peft")
    import_peft(tmp_path / "peft", model, tmp_path / "back")
    same_params(tmp_path / "back", tmp_path / "tuned")
    assert load_adapter(tmp_path / "back").lora.scale == lora.scale


def test_what_peft_made_of_a_whole_unitoken_in_torch(model, tmp_path):
    """Where its names are in the file, SigLIP and the MLP adapter are meant by the settings too."""
    lora = LoraConfig(rank=2, alpha=1.0, targets="layers/(attention/)?q/")
    whole = ("adapter/down/kernel", "adapter/down/bias")
    tuned = save_trained(tmp_path / "tuned", model, PUBLISHED, lora, whole)
    folder = tmp_path / "peft"
    export_peft(tuned, folder)
    tensors = arrays(folder / peft.WEIGHTS) | arrays(folder / peft.UNITOKEN_WEIGHTS)
    (folder / peft.UNITOKEN_WEIGHTS).unlink()
    change(folder, auto_mapping={}, modules_to_save=["adapter.2"])
    write_safetensors(folder / peft.WEIGHTS, tensors)
    import_peft(folder, model, tmp_path / "back")
    same_params(tmp_path / "back", tuned)
    for name in ("adapter.2.bias", "vit.encoder.layers.0.self_attn.q_proj.lora_B.weight"):
        left = {key: value for key, value in tensors.items() if not key.endswith(name)}
        write_safetensors(folder / peft.WEIGHTS, left)
        with pytest.raises(ConversionError, match=rf"1 problem:\s+missing: {name}"):
            import_peft(folder, model, tmp_path / "other")


def test_norms_need_the_base(model, tmp_path):
    """Rows a head follow from the number of heads, which its settings alone say."""
    moved = shutil.copytree(model, tmp_path / "model")
    norms = tuple(f"decoder/layers/attention/q_norm/{leaf}" for leaf in ("scale", "bias"))
    tuned = save_trained(tmp_path / "tuned", moved, PUBLISHED, MLP, norms)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="name it with --model"):
        export_peft(tuned, tmp_path / "peft")
    export_peft(tuned, tmp_path / "peft", model=tmp_path / "elsewhere")
    import_peft(tmp_path / "peft", tmp_path / "elsewhere", tmp_path / "back")
    same_params(tmp_path / "back", tuned)


def test_command_line(model, adapter, tmp_path, capsys):
    out, back = str(tmp_path / "peft"), str(tmp_path / "back")
    assert main(["export", "--adapter", str(adapter), "--out", out, "--base-name", "me/decoder"]) == 0
    assert (
        json.loads((tmp_path / "peft" / peft.CONFIG).read_text())["base_model_name_or_path"] == "me/decoder"
    )
    assert main(["export", "--adapter", str(adapter), "--out", out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["convert", "--peft", out, "--model", str(model), "--out", back]) == 0
    assert "rank 3, alpha 5" in capsys.readouterr().out
    same_params(back, adapter)
    for arguments, message in (
        (["export", "--adapter", str(adapter), "--vqgan"], "--vqgan has no meaning with --adapter"),
        (["export", "--model", str(model), "--base-name", "x"], "--base-name has no meaning with a model"),
        (["convert", "--peft", out, "--image-size", "64"], "--image-size has no meaning with --peft"),
        (["convert", "--checkpoint", out, "--model", "m"], "--model has no meaning with --checkpoint"),
        (["convert", "--peft", out, "--model", str(model), "--out", str(model)], "is no adapter folder"),
    ):
        arguments += [] if "--out" in arguments else ["--out", str(tmp_path / "nothing")]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
