"""FLOPs by formula: the figures that our goals were derived from, and XLA's count of the same programs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_mixture import five_crop_example

from tests.helpers.tiny_model import CONFIG as TINY
from unitoken_jax.config import ModelConfig
from unitoken_jax.model import flops
from unitoken_jax.model.vqgan import VQModel

MODEL = ModelConfig()
ALL = ("siglip", "adapter", "decoder")
GIGA, TERA = 1e9, 1e12


def total(work, trained=()):
    return sum(flops.training(MODEL, work, trained).values())


def test_decoder_and_head_forward_of_a_4096_token_row():
    """Twice 6.476 G weights, 0.54 GF of head, 1.07 GF of causal attention: 14.56 GF a token, 43.7 trained."""
    row = flops.example(4096, supervised=4096)
    parts = {name: count / 4096 / GIGA for name, count in flops.forward(MODEL, row).items()}
    assert parts["decoder"] == pytest.approx(12.95, abs=0.005)
    assert parts["head"] == pytest.approx(0.54, abs=0.005)
    assert parts["attention"] == pytest.approx(1.07, abs=0.005)
    assert total(row) / 4096 / GIGA == pytest.approx(14.56, abs=0.01)
    assert total(row, ALL) / 4096 / GIGA == pytest.approx(43.7, abs=0.05)


def test_crops_and_images():
    parts = flops.forward(MODEL, flops.Work(crops=1, images=1))
    assert parts["siglip"] / GIGA == pytest.approx(666, abs=1)
    assert parts["adapter"] / GIGA == pytest.approx(31, abs=0.5)
    assert parts["vq"] / TERA == pytest.approx(0.55, abs=0.01)


def test_a_five_crop_example():
    """232.9 TF in stage II with the head everywhere, without encoding; stage I at most 0.65 of stage II."""
    work = five_crop_example(MODEL)
    assert work.tokens == pytest.approx(5010, abs=5)
    everywhere = work._replace(supervised=work.tokens, images=0)
    assert total(everywhere, ALL) / TERA == pytest.approx(232.9, rel=0.003)
    ratio = total(work, ("siglip", "adapter")) / total(work, ALL)
    assert 0.59 <= ratio <= 0.65
    naive = work._replace(suffix_tokens=work.tokens, suffix_pairs=work.pairs, crossing_pairs=0)
    # 158.8 TF counts a frozen decoder's attention backward once; it is two products of four, twice.
    once = total(naive, ("siglip", "adapter")) - flops.forward(MODEL, naive)["attention"]
    head = flops.forward(MODEL, everywhere)["head"] - flops.forward(MODEL, work)["head"]
    vq = flops.forward(MODEL, work)["vq"]
    assert (once + 2 * head - vq) / TERA == pytest.approx(158.8, rel=0.003)


def test_no_backward_where_none_is_needed():
    text = flops.example(100, supervised=0)
    assert flops.training(MODEL, text, ("siglip", "adapter")) == flops.forward(MODEL, text)
    crop = flops.Work(crops=1)
    cost = flops.training(MODEL, crop, ("adapter",))
    assert cost["siglip"] == flops.forward(MODEL, crop)["siglip"]
    assert cost["adapter"] < 3 * flops.forward(MODEL, crop)["adapter"]


@pytest.mark.parametrize("resolution", [(), (64,)], ids=["published", "with attention"])
def test_the_vq_encoder_is_what_xla_counts(resolution):
    """XLA also counts elementwise work, a few per cent here."""
    config = dataclasses.replace(MODEL.vq, attention_resolutions=resolution)
    model = VQModel(config)
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8)
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])

    def codes(params, image):
        network = model.bind({"params": params})
        return network.quantize(network.encode(image))[1]

    counted = jax.jit(codes).lower(params, image).cost_analysis()["flops"]
    assert flops.vq_encoder(config, 256, 256) == pytest.approx(counted, rel=0.03)


def test_a_batch_is_the_sum_of_its_examples():
    model = dataclasses.replace(TINY, sequence=dataclasses.replace(TINY.sequence, image_size=(16, 16)))
    patches = model.siglip.patches
    soft = np.full((2, 16), -1)
    soft[0, 2:4] = [0, 1]  # first example: prefix 2, crop 0
    soft[0, 10:12] = [patches, 2 * patches]  # second: it begins at 8, prefix 2, crops 1 and 2
    code_index = np.full((2, 16), -1)
    code_index[1, :4] = [0, 1, 16, 17]  # two images of 4 x 4 codes
    batch = {
        "segments": np.array([[1] * 8 + [2] * 6 + [0] * 2, [1] * 5 + [0] * 11]),
        "positions": np.array([[*range(8), *range(6), 0, 0], [*range(5), *[0] * 11]]),
        "image_feature_index": soft,
        "labels": np.where(np.arange(16) == 4, 7, -1) * np.ones((2, 1), int),
        "crops": np.zeros((2, 4, 16, 16, 3), np.uint8),
        "code_index": code_index,
        "images": np.zeros((2, 3, 16, 16, 3), np.uint8),
    }
    expected = flops.example(8, 1, prefix=2, crops=1) + flops.example(6, 0, prefix=2, crops=2)
    expected += flops.example(5, 1, images=2)
    assert flops.batch_work(model, batch) == expected


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
    ],
)
def test_devices_by_kind(kind, name):
    assert flops.device(kind).name == name
    assert flops.device("cpu") is None
