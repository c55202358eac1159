"""The adapter folder: complete by itself, attached to its own base alone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax import UniToken
from unitoken_jax.checkpoint.adapter import (
    SETTINGS,
    WEIGHTS,
    Base,
    fingerprint,
    load_adapter,
    save_adapter,
)
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.checkpoint.quantization import quantize_model
from unitoken_jax.config import LoraConfig
from unitoken_jax.model.init import init_lora
from unitoken_jax.model.lora import PAIR

LORA = LoraConfig(rank=2, alpha=6.0, targets="^(decoder/layers|siglip/layers)/")
QUESTION = [[noise(0), "what is this ?"]]


def trained(seed: int = 0) -> dict[str, np.ndarray]:
    """Pairs as after training, and the MLP adapter's kernel, which was trained whole."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(init_lora(CONFIG, LORA), sep="/")
    pairs = {path: rng.normal(size=leaf.shape) * 0.5 for path, leaf in flat.items() if PAIR.search(path)}
    return pairs | {"adapter/up/kernel": tiny_params()["adapter"]["up"]["kernel"] * 1.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(path, CONFIG, tiny_params(), tiny_tokenizer())
    return path


@pytest.fixture
def adapter(base, tmp_path):
    save_adapter(tmp_path / "tuned", trained(), LORA, Base.of(base), {"step": 3})
    return tmp_path / "tuned"


def features(model: UniToken) -> np.ndarray:
    """Something that depends on every network, without decoding."""
    hidden = model.module.apply(
        {"params": model.network_params},
        {
            "tokens": np.full((1, 8), 7, np.int32),
            "segments": np.ones((1, 8), np.int32),
            "positions": np.arange(8, dtype=np.int32)[None],
            "image_feature_index": np.array([[-1, 0, 1, 2, 3, -1, -1, -1]], np.int32),
            "crops": np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3)).astype(np.uint8),
        },
        method="hidden",
    )
    return np.asarray(hidden)


def test_one_base_and_several_adapters(base, adapter, tmp_path):
    """Attached, changed for another, and taken off; the base's arrays are shared and never change."""
    save_adapter(tmp_path / "other", trained(1), LORA, Base.of(base))
    model = UniToken.load(base)
    tuned = model.with_adapter(adapter)
    other = tuned.with_adapter(tmp_path / "other")
    found = [features(one) for one in (model, tuned, other, other.with_adapter(None))]
    np.testing.assert_array_equal(found[0], found[3])
    assert min(np.abs(found[a] - found[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1
    np.testing.assert_array_equal(features(UniToken.load(adapter=adapter)), found[1])
    shared = [one.params["decoder"]["layers"]["1"]["mlp"]["up"]["kernel"] for one in (model, tuned, other)]
    assert shared[0] is shared[1] is shared[2]
    assert tuned.params["decoder"]["layers"]["1"]["mlp"]["up"]["lora_scale"] == 3.0


def test_a_copy_and_a_quantized_copy_are_the_same_base(base, adapter, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    quantize_model(base, tmp_path / "int8", 8)
    assert {fingerprint(path) for path in (base, tmp_path / "copy", tmp_path / "int8")} == {fingerprint(base)}
    assert UniToken.load(tmp_path / "int8", adapter=adapter).answer(QUESTION)


def test_another_base_is_refused_by_name(base, adapter, tmp_path):
    changed = jax.tree.map(lambda leaf: leaf, tiny_params())
    changed["decoder"]["layers"]["mlp"]["up"]["kernel"][1, 2, 3] += 1e-3
    try:
        save_model(tmp_path / "changed", CONFIG, changed, tiny_tokenizer())
    finally:
        changed["decoder"]["layers"]["mlp"]["up"]["kernel"][1, 2, 3] -= 1e-3
    with pytest.raises(ValueError, match=r"was trained on .*model .*changed .*is another model"):
        UniToken.load(tmp_path / "changed", adapter=adapter)


def test_what_is_missing_surplus_or_misshapen_is_named(base, adapter):
    weights = load_file(adapter / WEIGHTS)
    weights.pop("decoder/layers/mlp/up/lora_b")
    weights["siglip/layers/q/lora_a"] = weights["siglip/layers/q/lora_a"][..., :1].copy()
    weights["decoder/layers/mlp/side/lora_a"] = np.zeros((2, 2), np.float32)
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ValueError, match="3 problems") as error:
        UniToken.load(base, adapter=adapter)
    for line in (
        "missing: decoder/layers/mlp/up/lora_b",
        "surplus: decoder/layers/mlp/side",
        "shape: siglip",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    "damage", ["settings", "lora", "base", "fingerprint", "weights", "dtype", "format", "absent"]
)
def test_a_damaged_folder_is_named(adapter, damage):
    values = json.loads((adapter / SETTINGS).read_text())
    wrong = {
        "lora": {"lora": []},
        "base": {"base": []},
        "fingerprint": {"base": values["base"] | {"fingerprint": 5}},
        "format": {"format": 9},
    }
    if damage in wrong:
        (adapter / SETTINGS).write_text(json.dumps(values | wrong[damage]))
    elif damage == "settings":
        (adapter / SETTINGS).write_text("{")
    elif damage == "dtype":
        weights = load_file(adapter / WEIGHTS)
        save_file({path: value.astype(np.int32) for path, value in weights.items()}, adapter / WEIGHTS)
    elif damage == "weights":
        (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9])
    else:
        (adapter / WEIGHTS).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="tuned"):
        load_adapter(adapter)


def test_a_folder_of_something_else_is_never_replaced(base, adapter):
    with pytest.raises(FileExistsError, match="no adapter folder"):
        save_adapter(base, trained(), LORA, Base.of(base))
    save_adapter(adapter, trained(1), dataclasses.replace(LORA, rslora=True), Base.of(base))
    assert load_adapter(adapter).lora.rslora
