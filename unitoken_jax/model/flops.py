"""FLOPs of a training step by formula, and what devices can do: for MFU and for `unitoken plan`.

A product [m, k] x [k, n] counts 2 m k n. Counted are matrix products and convolutions that the mathematics
needs, each once: no recomputation (remat), no padding, of attention only the pairs that see each other, the
head only where a label is. Norms, activations and the optimizer are left out, as everyone does.

Backward: a product's gradient to its weights and to its input cost one forward each. What is frozen needs
no weight gradient, and in a frozen decoder nothing before the first adapted feature needs any. Attention has
two products forward (QK, PV) and four backward, frozen or not; of those, two are to keys and values.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from unitoken_jax.config import ModelConfig, VQConfig


class Work(NamedTuple):
    """What a step has to do; every field is a sum over examples, so that rows and processes add up.

    The prefix of an example is what comes before its first adapted feature (all of it where there is none),
    the suffix is the rest. A pair is a query and a key that it sees.
    """

    tokens: float = 0
    pairs: float = 0
    supervised: float = 0  # positions with a label
    suffix_tokens: float = 0
    suffix_pairs: float = 0  # both in the suffix
    crossing_pairs: float = 0  # a query of the suffix, a key of the prefix
    crops: float = 0
    images: float = 0  # encoded by the VQ-GAN in the step

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]  # fields, not tuples, add up
        return Work(*(mine + yours for mine, yours in zip(self, other)))

    def __mul__(self, times: float) -> "Work":  # type: ignore[override]  # as above
        return Work(*(times * mine for mine in self))


def example(length, supervised, prefix=None, crops=0, images=0) -> Work:
    """One example of `length` tokens, or a whole row taken as one; `prefix` None: it has no adapted features.

    Arrays are as many examples, and are added up.
    """
    length = np.asarray(length, float)
    prefix = length if prefix is None else np.asarray(prefix, float)
    suffix = length - prefix
    fields = (length, _causal(length), supervised, suffix, _causal(suffix), suffix * prefix, crops, images)
    return Work(*(float(np.sum(field)) for field in fields))


def _causal(length):
    """Pairs of `length` tokens that each see themselves and those before them."""
    return length * (length + 1) / 2


def batch_work(model: ModelConfig, batch: Mapping[str, Any]) -> Work:
    """The work of a batch's own examples, crops and images; `batch` as batch.py says (numpy).

    Crops and images that only pad the batch do not count.
    """
    segments, feature_index = np.asarray(batch["segments"]), np.asarray(batch["image_feature_index"])
    rows = len(segments)
    number = int(segments.max(initial=0)) + 1
    # One id for each (row, example); padding is example 0 of its row and thrown away.
    ids = (segments + number * np.arange(rows)[:, None]).ravel()
    lengths = np.bincount(ids, minlength=rows * number)
    prefixes = lengths.copy()  # tokens before the first continuous one, wherever in the row they lie
    is_feature = (feature_index >= 0).ravel()
    np.minimum.at(prefixes, ids[is_feature], np.asarray(batch["positions"]).ravel()[is_feature])
    real = (lengths > 0) & (np.arange(rows * number) % number > 0)
    images = 0
    if "images" in batch:
        height, width = batch["images"].shape[2:4]
        images = _used(batch["code_index"], height // model.vq.stride * (width // model.vq.stride))
    supervised = int(np.count_nonzero(np.asarray(batch["labels"]) >= 0))
    crops = _used(feature_index, model.siglip.patches)
    return example(lengths[real], supervised, prefixes[real], crops, images)


def _used(index, block_size: int) -> int:
    """How many blocks of `each` features the rows of int32[B, T] `index` point into."""
    return sum(len(np.unique(row[row >= 0] // block_size)) for row in np.asarray(index))


def trained_networks(paths: Collection[str]) -> set[str]:
    """The networks of trained parameters' `paths`, as `training` takes them: "decoder", or "decoder/lora" for
    its LoRA pairs."""
    return {path.split("/")[0] + ("/lora" if path.endswith(("/lora_a", "/lora_b")) else "") for path in paths}


def forward(model: ModelConfig, work: Work) -> dict[str, float]:
    """FLOPs by part without training, named as in `training`."""
    return training(model, work, ())


def training(model: ModelConfig, work: Work, trained: Collection[str]) -> dict[str, float]:
    """FLOPs of forward and backward where the networks in `trained` ("siglip", "adapter", "decoder") train.

    By part: "decoder" (its projections), "attention" (its scores and sums), "head", "siglip", "adapter" and
    "vq"; the step is the sum. A network counts as trained where any of its parameters is; one that has LoRA
    pairs alone ("decoder/lora") is frozen, with a backward pass through it. The pairs' own products, one in a
    hundred at rank 16 of 7B, are not counted.
    """
    c = model.decoder
    siglip, adapter, decoder = (name in trained for name in ("siglip", "adapter", "decoder"))
    siglip_pairs, adapter_pairs, decoder_pairs = (
        f"{name}/lora" in trained for name in ("siglip", "adapter", "decoder")
    )
    soft = siglip or adapter or siglip_pairs or adapter_pairs
    whole = decoder or decoder_pairs
    back_tokens = work.tokens if whole else soft * work.suffix_tokens
    back_pairs = work.pairs * 2 if whole else soft * (2 * work.suffix_pairs + work.crossing_pairs)
    projections = c.width * c.head_dim * 2 * (c.heads + c.kv_heads) + 3 * c.width * c.mlp
    head = 2 * c.width * c.vocab_size * work.supervised
    up = 2 * model.siglip.patches * model.siglip.width * c.width
    down = 2 * model.siglip.patches * c.width * c.width
    patches, blocks = _siglip(model)
    return {
        "decoder": 2 * c.depth * projections * (work.tokens * (1 + decoder) + back_tokens),
        "attention": 4 * c.depth * c.heads * c.head_dim * (work.pairs + back_pairs),
        "head": head * (1 + decoder + (whole or soft)),
        "siglip": work.crops * (patches + blocks * (3 if siglip else 2 if siglip_pairs else 1)),
        "adapter": work.crops * (up * (1 + adapter + (siglip or siglip_pairs)) + down * (1 + adapter + soft)),
        "vq": work.images * vq_encoder(model.vq, *model.sequence.image_size),
    }


def _siglip(model: ModelConfig) -> tuple[float, float]:
    """(patch embedding, which is never trained; blocks) of a crop, forward."""
    c = model.siglip
    block = 8 * c.width**2 + 4 * c.width * c.mlp + 4 * c.patches * c.width
    return 2.0 * c.patches * 3 * c.patch_size**2 * c.width, float(c.patches * c.depth * block)


def vq_encoder(config: VQConfig, height: int, width: int) -> float:
    """FLOPs of one image's codes: convolutions, attention, and the distances to every code."""
    c = config

    def conv(pixels: int, inputs: int, outputs: int, size: int = 3) -> int:
        return 2 * pixels * size**2 * inputs * outputs

    def block(pixels: int, inputs: int, outputs: int) -> int:
        shortcut = conv(pixels, inputs, outputs, 1) if inputs != outputs else 0
        return conv(pixels, inputs, outputs) + conv(pixels, outputs, outputs) + shortcut

    def attention(pixels: int, channels: int) -> int:
        return 4 * conv(pixels, channels, channels, 1) + 4 * pixels**2 * channels

    pixels, channels = height * width, c.base_channels
    total = conv(pixels, 3, channels)
    for level, multiplier in enumerate(c.channel_multipliers):
        for _ in range(c.res_blocks):
            total += block(pixels, channels, c.base_channels * multiplier)
            channels = c.base_channels * multiplier
            if c.resolution // 2**level in c.attention_resolutions:
                total += attention(pixels, channels)
        if level + 1 < len(c.channel_multipliers):
            pixels //= 4
            total += conv(pixels, channels, channels)
    total += 2 * block(pixels, channels, channels) + c.mid_attention * attention(pixels, channels)
    total += conv(pixels, channels, c.latent_channels) + conv(pixels, c.latent_channels, c.embed_dim, 1)
    return float(total + 2 * pixels * c.embed_dim * c.codes)


@dataclasses.dataclass(frozen=True)
class Device:
    """Published peaks of one chip or card: FLOP/s in bf16 (dense), bytes, bytes/s.

    `link` is what a device sends along one axis of the interconnect, on a TPU to both neighbours; `axes` is
    how many axes it has (a GPU's switch is one). `hbm` is what a program may use.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    axes: int
    kinds: tuple[str, ...]  # jax's device_kind begins with one of these


# TPUs: FLOP/s and HBM bandwidth docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; links jax-ml.github.io/
# scaling-book/tpus ("bidirectional ICI bandwidth per link"). `hbm` is the limit that libtpu 0.0.52 names when
# it refuses a program, a little less than the documented 16, 95 and 32 GB.
# GPUs: NVIDIA's data sheets, SXM parts unless named; half of NVLink's 900 or 600 GB/s is what a GPU sends.
DEVICES = (
    Device("v5e", 197e12, 15.75 * 2**30, 819e9, 90e9, 2, ("TPU v5 lite", "TPU v5e")),
    Device("v5p", 459e12, 95.73 * 2**30, 2765e9, 180e9, 3, ("TPU v5p", "TPU v5")),
    Device("v6e", 918e12, 31.24 * 2**30, 1638e9, 180e9, 2, ("TPU v6 lite", "TPU v6e")),
    Device("H200", 989e12, 141e9, 4800e9, 450e9, 1, ("NVIDIA H200", "NVIDIA GH200 144G")),
    Device("H100 PCIe", 756e12, 80e9, 2000e9, 300e9, 1, ("NVIDIA H100 PCIe",)),
    Device("H100", 989e12, 80e9, 3350e9, 450e9, 1, ("NVIDIA H100",)),
    Device("A100-40GB", 312e12, 40e9, 1555e9, 300e9, 1, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    Device("A100", 312e12, 80e9, 2039e9, 300e9, 1, ("NVIDIA A100",)),
)


def device(kind: str) -> Device | None:
    """The entry of a jax `device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3") or name ("v5e"), or None."""
    named = (device for device in DEVICES if kind == device.name)
    return next(named, next((device for device in DEVICES if kind.startswith(device.kinds)), None))
