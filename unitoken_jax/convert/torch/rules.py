"""The name table of each network, read in both directions: our parameter path <-> torch name, and the layout.

A rule's templates hold numbers: `{i}`, `{j}`. Where `{i}` is in the torch name alone, the parameter is
stacked: one torch tensor a layer, layer i at index i of axis 0. Templates' text is literal.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

import numpy as np
from einops import rearrange

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array is laid out in torch's files, and how here; `shape` maps our shape to torch's."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


def _patch_side(rows: int) -> int:
    """Side in pixels of patches that have `rows` = side * side * 3 numbers."""
    return math.isqrt(rows // 3)


def _patch_to_torch(x: np.ndarray) -> np.ndarray:
    side = _patch_side(x.shape[0])
    return rearrange(x, "(row column rgb) outputs -> outputs rgb row column", row=side, column=side)


SAME = Layout(lambda x: x, lambda x: x, lambda shape: shape)
LINEAR = Layout(lambda x: x.T, lambda x: x.T, lambda shape: shape[::-1])  # torch [out, in], ours [in, out]
CONV = Layout(  # torch OIHW, ours HWIO
    lambda x: rearrange(x, "outputs inputs row column -> row column inputs outputs"),
    lambda x: rearrange(x, "row column inputs outputs -> outputs inputs row column"),
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
)
PATCH = Layout(  # torch [W, 3, p, p], ours [p * p * 3, W]
    lambda x: rearrange(x, "outputs rgb row column -> (row column rgb) outputs"),
    _patch_to_torch,
    lambda shape: (shape[1], 3, _patch_side(shape[0]), _patch_side(shape[0])),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A parameter's path here, the name of its tensor (or tensors) in torch, and how the arrays differ."""

    ours: str
    torch: str
    layout: Layout = SAME

    @property
    def stacked(self) -> bool:
        """Whether every layer is a tensor of its own in torch, and all are one array here."""
        return "{i}" in self.torch and "{i}" not in self.ours


def _pair(ours: str, torch: str, layout: Layout, bias: bool = True) -> list[Rule]:
    """Rules of a layer's kernel, torch's `weight`, and its bias."""
    rules = [Rule(f"{ours}/kernel", f"{torch}.weight", layout)]
    return rules + ([Rule(f"{ours}/bias", f"{torch}.bias")] if bias else [])


def _norm(ours: str, torch: str, bias: bool = True) -> list[Rule]:
    """Rules of a normalisation's scale, torch's `weight`, and its bias."""
    rules = [Rule(f"{ours}/scale", f"{torch}.weight")]
    return rules + ([Rule(f"{ours}/bias", f"{torch}.bias")] if bias else [])


def _decoder() -> Iterable[Rule]:
    """Torch names as in `transformers`' Chameleon."""
    yield Rule("decoder/embed/embedding", "model.embed_tokens.weight")
    yield Rule("decoder/lm_head/kernel", "lm_head.weight", LINEAR)
    yield from _norm("decoder/norm", "model.norm", bias=False)
    ours, torch = "decoder/layers", "model.layers.{i}"
    yield from _norm(f"{ours}/attention_norm", f"{torch}.input_layernorm", bias=False)
    yield from _norm(f"{ours}/mlp_norm", f"{torch}.post_attention_layernorm", bias=False)
    for name in "qkvo":
        yield from _pair(f"{ours}/attention/{name}", f"{torch}.self_attn.{name}_proj", LINEAR, bias=False)
    for name in "qk":
        yield from _norm(f"{ours}/attention/{name}_norm", f"{torch}.self_attn.{name}_norm")
    for name in ("gate", "up", "down"):
        yield from _pair(f"{ours}/mlp/{name}", f"{torch}.mlp.{name}_proj", LINEAR, bias=False)


def _siglip() -> Iterable[Rule]:
    """Torch names as inside the vision tower, without prefix."""
    yield from _pair("siglip/patch_embed", "embeddings.patch_embedding", PATCH)
    yield Rule("siglip/position_embed/embedding", "embeddings.position_embedding.weight")
    yield from _norm("siglip/norm", "post_layernorm")
    ours, torch = "siglip/layers", "encoder.layers.{i}"
    yield from _norm(f"{ours}/attention_norm", f"{torch}.layer_norm1")
    yield from _norm(f"{ours}/mlp_norm", f"{torch}.layer_norm2")
    yield from _pair(f"{ours}/up", f"{torch}.mlp.fc1", LINEAR)
    yield from _pair(f"{ours}/down", f"{torch}.mlp.fc2", LINEAR)
    for name in "qkvo":
        yield from _pair(f"{ours}/{name}", f"{torch}.self_attn.{'out' if name == 'o' else name}_proj", LINEAR)


def _block(ours: str, torch: str) -> Iterable[Rule]:
    """Rules of a residual block of the VQ-GAN."""
    for number in "12":
        yield from _norm(f"{ours}/norm{number}", f"{torch}.norm{number}")
        yield from _pair(f"{ours}/conv{number}", f"{torch}.conv{number}", CONV)
    yield from _pair(f"{ours}/shortcut", f"{torch}.nin_shortcut", CONV)


def _attention(ours: str, torch: str) -> Iterable[Rule]:
    """Rules of an attention block of the VQ-GAN."""
    yield from _norm(f"{ours}/norm", f"{torch}.norm")
    for name in "qkvo":
        yield from _pair(f"{ours}/{name}", f"{torch}.{'proj_out' if name == 'o' else name}", CONV)


def _vqgan() -> Iterable[Rule]:
    """Torch names as in Meta's vqgan.ckpt."""
    yield Rule("vqgan/codebook", "quantize.embedding.weight")
    yield from _pair("vqgan/quant_conv", "quant_conv", CONV)
    yield from _pair("vqgan/post_quant_conv", "post_quant_conv", CONV)
    for side, direction in (("encoder", "down"), ("decoder", "up")):
        ours = f"vqgan/{side}"
        yield from _pair(f"{ours}/conv_in", f"{side}.conv_in", CONV)
        yield from _pair(f"{ours}/conv_out", f"{side}.conv_out", CONV)
        yield from _norm(f"{ours}/norm_out", f"{side}.norm_out")
        yield from _pair(
            f"{ours}/{direction}sample_{{i}}", f"{side}.{direction}.{{i}}.{direction}sample.conv", CONV
        )
        yield from _block(f"{ours}/{direction}_{{i}}/block_{{j}}", f"{side}.{direction}.{{i}}.block.{{j}}")
        yield from _attention(
            f"{ours}/{direction}_{{i}}/attention_{{j}}", f"{side}.{direction}.{{i}}.attn.{{j}}"
        )
        yield from _block(f"{ours}/mid/block_{{i}}", f"{side}.mid.block_{{i}}")
        yield from _attention(f"{ours}/mid/attention", f"{side}.mid.attn_1")


DECODER = tuple(_decoder())
ADAPTER = (
    *_pair("adapter/up", "adapter.0", LINEAR),
    *_pair("adapter/down", "adapter.2", LINEAR),
)
SIGLIP = tuple(_siglip())
VQGAN = tuple(_vqgan())
TABLES = {"decoder": DECODER, "adapter": ADAPTER, "siglip": SIGLIP, "vqgan": VQGAN}
PREFIX = {"siglip": "vit."}  # What stands before a network's torch names in a UniToken checkpoint.
# Of LoRA pairs, which `peft` keeps beside the weight of each linear layer.
PAIRS = tuple(
    Rule(rule.ours.removesuffix("kernel") + ours, rule.torch.removesuffix("weight") + torch, LINEAR)
    for table in TABLES.values()
    for rule in table
    if rule.layout is LINEAR
    for ours, torch in (("lora_a", "lora_A.weight"), ("lora_b", "lora_B.weight"))
)

# Names that are left out, and why. Searched from the start of the name.
IGNORED = (
    (r"vit\.head\.", "SigLIP's pooling head: UniToken reads patch features"),
    (r"vision_model\.head\.", "SigLIP's pooling head: UniToken reads patch features"),
    (r"text_model\.|logit_scale$|logit_bias$", "SigLIP's text tower and its contrastive scale"),
    (r"(.*\.)?position_ids$|.*rotary_emb\.inv_freq$", "a constant that torch saved"),
    (r"(loss|discriminator|model_ema|perceptual_loss)\.", "the VQ-GAN's training loss"),
)


def ignored(name: str) -> str | None:
    """Why the torch tensor `name` is left out by rule, or None."""
    return next((reason for pattern, reason in IGNORED if re.match(pattern, name)), None)


def _pattern(template: str) -> re.Pattern:
    """A template as a regular expression with groups "i" and "j"."""
    pieces = re.split(r"\{([ij])\}", template)
    return re.compile(
        "".join(f"(?P<{piece}>[0-9]+)" if k % 2 else re.escape(piece) for k, piece in enumerate(pieces))
    )


_BY_OURS = {rule.ours: (_pattern(rule.ours), rule) for table in (*TABLES.values(), PAIRS) for rule in table}
_NO_NUMBERS = {ours: rule for ours, (_, rule) in _BY_OURS.items() if "{" not in ours}


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One torch tensor and what it is here: layer `layer` (None: the whole) of our parameter `path`."""

    path: str
    layer: int | None
    torch: str
    shape: Shape  # the torch tensor's
    layout: Layout


def tensor_mappings(path: str, shape: Shape) -> list[TensorMapping]:
    """The torch tensors that make our parameter `path` of `shape`, in order. KeyError: no rule names it."""
    rule, numbers = _NO_NUMBERS.get(path), {}
    if rule is None:
        for pattern, candidate in _BY_OURS.values():
            if match := pattern.fullmatch(path):
                rule, numbers = candidate, match.groupdict()
                break
        else:
            raise KeyError(f"no rule of convert/torch/rules.py names {path}")
    if rule.stacked:
        inner = rule.layout.shape(shape[1:])
        return [
            TensorMapping(path, layer, rule.torch.replace("{i}", str(layer)), inner, rule.layout)
            for layer in range(shape[0])
        ]
    torch = rule.torch
    for name, number in numbers.items():
        torch = torch.replace(f"{{{name}}}", number)
    return [TensorMapping(path, None, torch, rule.layout.shape(shape), rule.layout)]
