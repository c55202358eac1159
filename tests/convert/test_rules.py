"""The name tables: both directions agree, and every problem with a set of tensors is reported."""

import numpy as np
import pytest

from tests.helpers.torch_names import disassemble
from unitoken_jax.config import SiglipConfig
from unitoken_jax.convert.torch import configs, rules
from unitoken_jax.convert.torch.assemble import assemble
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector, Tensor

SHAPES = {
    "decoder/embed/embedding": (7, 4),
    "decoder/lm_head/kernel": (4, 7),
    "decoder/layers/attention/q/kernel": (2, 4, 6),
    "decoder/layers/attention/q_norm/scale": (2, 1, 3),
    "siglip/patch_embed/kernel": (2 * 2 * 3, 5),
    "siglip/layers/up/bias": (3, 8),
    "vqgan/codebook": (9, 2),
    "vqgan/encoder/down_10/block_1/conv2/kernel": (3, 3, 4, 5),
    "vqgan/decoder/up_1/attention_2/o/bias": (5,),
    "vqgan/encoder/mid/block_2/shortcut/kernel": (1, 1, 4, 5),
    "vqgan/encoder/downsample_0/kernel": (3, 3, 4, 4),
}
PREFIX = {"siglip": "vit."}


def values(dtype=np.float32) -> dict:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(dtype) for path, shape in SHAPES.items()}


def as_tensor(name: str, value: np.ndarray) -> Tensor:
    return Tensor(name, value.shape, value.dtype, "folder/file.safetensors", lambda: value)


def torch_names(flat) -> dict:
    pairs = [pair for path, value in flat.items() for pair in disassemble(path, value, PREFIX)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def tensors_of(pairs) -> dict:
    return {name: as_tensor(name, value) for name, value in pairs.items()}


def value_of(parameter) -> np.ndarray:
    pieces = {piece.mapping.layer: piece.read() for piece in parameter.pieces}
    value = pieces[None] if None in pieces else np.stack([pieces[i] for i in range(len(pieces))])
    assert (value.shape, value.dtype) == (parameter.shape, parameter.dtype)
    return value


def test_there_and_back():
    flat, report = values(), ProblemCollector()
    pairs = torch_names(flat)
    made = assemble(tensors_of(pairs), SHAPES, report, PREFIX)
    assert not report.problems
    assert made.keys() == flat.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(value_of(made[path]), value)


def test_names_and_layouts():
    pairs = torch_names(values())
    assert pairs["lm_head.weight"].shape == (7, 4)
    assert pairs["model.layers.1.self_attn.q_proj.weight"].shape == (6, 4)
    assert pairs["model.layers.0.self_attn.q_norm.weight"].shape == (1, 3)
    assert pairs["vit.embeddings.patch_embedding.weight"].shape == (5, 3, 2, 2)
    assert pairs["vit.encoder.layers.2.mlp.fc1.bias"].shape == (8,)
    assert pairs["quantize.embedding.weight"].shape == (9, 2)
    assert pairs["encoder.down.10.block.1.conv2.weight"].shape == (5, 4, 3, 3)
    assert pairs["decoder.up.1.attn.2.proj_out.bias"].shape == (5,)
    assert pairs["encoder.mid.block_2.nin_shortcut.weight"].shape == (5, 4, 1, 1)
    assert pairs["encoder.down.0.downsample.conv.weight"].shape == (4, 4, 3, 3)
    kernel = values()["siglip/patch_embed/kernel"].reshape(2, 2, 3, 5)
    np.testing.assert_array_equal(
        pairs["vit.embeddings.patch_embedding.weight"][4, 2, 0, 1], kernel[0, 1, 2, 4]
    )


def test_a_path_without_a_rule():
    with pytest.raises(KeyError, match=r"no rule of convert/torch/rules\.py names decoder/new"):
        rules.tensor_mappings("decoder/new", (1,))


def test_every_problem_is_listed_once_with_both_shapes():
    pairs = torch_names(values())
    del pairs["model.layers.1.self_attn.q_proj.weight"]
    pairs["lm_head.weight"] = np.zeros((7, 5), np.float32)
    pairs["model.embed_tokens.weight"] = np.zeros((7, 4), np.int32)
    pairs["vit.encoder.layers.0.mlp.fc1.bias"] = np.zeros(8, np.float16)
    pairs["model.extra.weight"] = np.zeros(3, np.float32)
    pairs["vit.head.probe"] = np.zeros(3, np.float32)
    report = ProblemCollector()
    made = assemble(tensors_of(pairs), SHAPES, report, PREFIX)
    with pytest.raises(ConversionError) as caught:
        report.check("x")
    message = str(caught.value)
    assert "5 problems" in message
    assert "missing: model.layers.1.self_attn.q_proj.weight (6, 4)" in message
    assert "shape: lm_head.weight in file.safetensors is (7, 5); expected (7, 4)" in message
    assert "dtype: model.embed_tokens.weight in file.safetensors is int32" in message
    wrong = "vit.encoder.layers.0.mlp.fc1.bias in file.safetensors is float16; the rest of siglip is float32"
    assert f"dtype: {wrong} (--dtype stores all in one)" in message
    assert "surplus: model.extra.weight (3,)" in message
    assert [*report.ignored.values()] == [["vit.head.probe"]]
    assert "decoder/lm_head/kernel" not in made
    report = ProblemCollector()
    assemble(tensors_of(pairs), SHAPES, report, PREFIX, one_dtype=False)
    assert len(report.problems) == 4


def test_a_norm_with_a_row_a_head_becomes_a_row_a_shard():
    pairs = torch_names(values())
    expected = np.stack([pairs[f"model.layers.{i}.self_attn.q_norm.weight"] for i in (0, 1)])
    for i in (0, 1):
        pairs[f"model.layers.{i}.self_attn.q_norm.weight"] = expected[i].repeat(4, axis=0)
    report = ProblemCollector()
    made = assemble(tensors_of(pairs), SHAPES, report, PREFIX)
    assert not report.problems
    np.testing.assert_array_equal(value_of(made["decoder/layers/attention/q_norm/scale"]), expected)
    uneven = pairs["model.layers.1.self_attn.q_norm.weight"].copy()
    uneven[2] += 1
    pairs["model.layers.1.self_attn.q_norm.weight"] = uneven
    assemble(tensors_of(pairs), SHAPES, report, PREFIX)
    assert "has a row a head, which differ within a shard" in report.problems[0]


def test_a_tower_of_so400m_s_shapes_needs_no_config():
    shapes = {
        "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "embeddings.position_embedding.weight": (729, 1152),
        "encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "encoder.layers.26.mlp.fc1.weight": (4304, 1152),
    }
    found = {
        "vit." + name: Tensor(name, shape, np.dtype(np.float16), "file", None)
        for name, shape in shapes.items()
    }
    assert configs.siglip_of_shapes(found) == SiglipConfig()
    del found["vit.encoder.layers.26.mlp.fc1.weight"]
    with pytest.raises(ConversionError, match="give --siglip"):
        configs.siglip_of_shapes(found)
