"""Published settings <-> ModelConfig: config.json of checkpoints and of SigLIP, Chameleon's vqgan.yaml."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from unitoken_jax.config import DecoderConfig, ModelConfig, SiglipConfig, VQConfig
from unitoken_jax.convert.torch.readers import read_json
from unitoken_jax.convert.torch.report import ConversionError, Tensor

# Where a SigLIP config.json is silent, `transformers` means these (its SiglipVisionConfig).
_SIGLIP_DEFAULTS = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
}
ANYRES, BASE = "ChameleonXLLMXForConditionalGenerationAnyRes", "ChameleonXLLMXForConditionalGeneration"
REQUIRED = object()
_MAX_LAYERS, _MAX_BLOCKS, _MAX_LEVELS = 1000, 100, 12


def _get(
    values: Mapping, key: str, kind: type | tuple[type, ...], location: str, default: Any = REQUIRED
) -> Any:
    """The value of `key`, which must be of type `kind`. Raises ConversionError naming `location` and key."""
    value = values.get(key, default)
    if value is REQUIRED:
        raise ConversionError(f"{location} has no {key!r}; expected {_name(kind)}")
    if value is not default and (
        not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)
    ):
        raise ConversionError(f"{location}: {key!r} is {value!r}; expected {_name(kind)}")
    return value


def _count(
    values: Mapping, key: str, location: str, default: Any = REQUIRED, maximum: int = 2**20, minimum: int = 1
) -> int:
    """The whole number values[key], `minimum` to `maximum`.

    A damaged size must not become a shape that takes all memory to describe.
    """
    value = _get(values, key, int, location, default)
    if value is None or not minimum <= value <= maximum:
        raise ConversionError(f"{location}: {key!r} is {value}; expected {minimum} to {maximum}")
    return value


def _positive(values: Mapping, key: str, location: str, default: float) -> float:
    """The positive number values[key]."""
    value = _get(values, key, (int, float), location, default)
    if not 0 < value < 1e30:
        raise ConversionError(f"{location}: {key!r} is {value}; expected a positive number")
    return float(value)


def _name(kind: type | tuple[type, ...]) -> str:
    """ "int or float": a type, or several, for messages."""
    return " or ".join(member.__name__ for member in (kind if isinstance(kind, tuple) else (kind,)))


def decoder_config(values: Mapping, location: str) -> DecoderConfig:
    """The decoder that a checkpoint's config.json describes.

    Raises ConversionError where a setting would change the computation in a way that is not known here.
    """
    count = functools.partial(_count, values, location=location)
    known_values = (
        ("rope_scaling", None),
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("mask_image_logits", False),
    )
    for key, known in known_values:
        if values.get(key, known) != known:
            raise ConversionError(f"{location}: {key!r} is {values[key]!r}; only {known!r} is known here")
    heads = count("num_attention_heads")
    config = DecoderConfig(
        vocab_size=count("vocab_size"),
        width=count("hidden_size"),
        depth=count("num_hidden_layers", maximum=_MAX_LAYERS),
        heads=heads,
        kv_heads=count("num_key_value_heads", default=heads),
        mlp=count("intermediate_size"),
        norm_eps=_positive(values, "rms_norm_eps", location, 1e-5),
        rope_theta=_positive(values, "rope_theta", location, 10000.0),
        qk_norm_shards=count("model_parallel_size", default=1),
        norm="output" if _get(values, "swin_norm", bool, location, False) else "pre",
        dropout=float(_get(values, "dropout", (int, float), location, 0.05)),
    )
    if not 0 <= config.dropout < 1:
        raise ConversionError(f"{location}: 'dropout' is {config.dropout}; expected 0 to less than 1")
    for name, number in (("num_attention_heads", heads), ("num_key_value_heads", config.kv_heads)):
        if config.width % heads or number % config.qk_norm_shards or heads % config.kv_heads:
            raise ConversionError(
                f"{location}: hidden_size {config.width}, {name} {number} and model_parallel_size "
                f"{config.qk_norm_shards} do not divide evenly"
            )
    return config


def is_tied(values: Mapping, location: str) -> bool:
    """Whether a checkpoint's output layer is its embeddings."""
    return _get(values, "tie_word_embeddings", bool, location, False)


def siglip_config(folder: str | os.PathLike) -> SiglipConfig:
    """The vision tower that a SigLIP folder's config.json describes (a full model's, or a tower's alone)."""
    path = pathlib.Path(folder) / "config.json"
    values = read_json(path)
    vision = values.get(
        "vision_config", values if values.get("model_type") == "siglip_vision_model" else None
    )
    if not isinstance(vision, dict):
        raise ConversionError(f"{path} has no 'vision_config': it is not SigLIP's")
    sizes: dict[str, Any] = {}
    for key, default in _SIGLIP_DEFAULTS.items():
        read = _positive if isinstance(default, float) else _count
        sizes[key] = read(vision, key, str(path), default)
    if sizes["num_hidden_layers"] > _MAX_LAYERS or sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConversionError(
            f"{path}: {sizes['num_hidden_layers']} layers of width {sizes['hidden_size']} with "
            f"{sizes['num_attention_heads']} heads are no vision tower"
        )
    if sizes["patch_size"] > sizes["image_size"]:
        raise ConversionError(f"{path}: 'patch_size' is larger than 'image_size' {sizes['image_size']}")
    if vision.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise ConversionError(
            f"{path}: 'hidden_act' is {vision['hidden_act']!r}; expected 'gelu_pytorch_tanh'"
        )
    return SiglipConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp=sizes["intermediate_size"],
        norm_eps=sizes["layer_norm_eps"],
    )


def check_preprocessor(folder: str | os.PathLike, config: SiglipConfig) -> None:
    """Raises ConversionError where a SigLIP folder's preprocessor_config.json, if any, prepares other pixels.

    Here they are as published: the whole image to a square, bicubic, 0..255 to -1..1.
    """
    path = pathlib.Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return
    values, side = read_json(path), config.image_size
    known = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"height": side, "width": side},
    }
    for key, expected in known.items():
        if values.get(key, expected) != expected:
            raise ConversionError(f"{path}: {key!r} is {values[key]!r}; only {expected!r} is known here")


def siglip_of_shapes(tensors: Mapping[str, Tensor]) -> SiglipConfig:
    """SO400M/14-384's settings where the `vit.` tensors have its shapes; else an error that asks."""
    so400m = SiglipConfig()

    def shape(name: str) -> tuple[int, ...]:
        tensor = tensors.get("vit." + name)
        return () if tensor is None else tensor.shape

    depth = 1 + max(
        (int(name.split(".")[3]) for name in tensors if name.startswith("vit.encoder.layers.")), default=-1
    )
    shapes = (
        shape("embeddings.patch_embedding.weight"),
        shape("embeddings.position_embedding.weight"),
        shape("encoder.layers.0.mlp.fc1.weight"),
        depth,
    )
    c = so400m
    known = ((c.width, 3, c.patch_size, c.patch_size), (c.patches, c.width), (c.mlp, c.width), c.depth)
    if shapes != known:
        raise ConversionError(
            "the checkpoint says nothing about its vision tower's heads and image size, and its shapes "
            f"{shapes} are not SO400M/14-384's {known}: give --siglip, the SigLIP folder it was trained from"
        )
    return so400m


def vq_config_of_yaml(path: str | os.PathLike) -> VQConfig:
    """The VQ-GAN that a vqgan.yaml describes."""
    import yaml

    path = pathlib.Path(path)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; expected Chameleon's vqgan.yaml beside vqgan.ckpt")
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        table = dict(params["ddconfig"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{path} has no model.params.ddconfig ({error}): it is not a VQ-GAN's"
        ) from None
    location = f"{path} (ddconfig)"
    known_values = {"double_z": False, "in_channels": 3, "out_ch": 3}
    for key, known in known_values.items():
        if table.get(key, known) != known:
            raise ConversionError(f"{location}: {key!r} is {table[key]!r}; only {known!r} is known here")
    return VQConfig(
        codes=_count(params, "n_embed", str(path)),
        embed_dim=_count(params, "embed_dim", str(path)),
        latent_channels=_count(table, "z_channels", location),
        base_channels=_count(table, "ch", location),
        channel_multipliers=_levels(table, "ch_mult", location),
        res_blocks=_count(table, "num_res_blocks", location, maximum=_MAX_BLOCKS, minimum=0),
        resolution=_count(table, "resolution", location),
        attention_resolutions=_numbers(table, "attn_resolutions", location),
        mid_attention=_get(table, "attn_type", str, location, "vanilla") == "vanilla",
        norm_groups=_groups(table, location),
    )


def _numbers(values: Mapping, key: str, location: str) -> tuple[int, ...]:
    """The list of whole numbers values[key]."""
    numbers = _get(values, key, (list, tuple), location)
    if not all(type(value) is int for value in numbers):
        raise ConversionError(f"{location}: {key!r} is {numbers!r}; expected whole numbers")
    return tuple(numbers)


def _levels(values: Mapping, key: str, location: str) -> tuple[int, ...]:
    """The channel multipliers values[key], one for each level of the VQ-GAN."""
    multipliers = _numbers(values, key, location)
    if not 1 <= len(multipliers) <= _MAX_LEVELS or not all(1 <= number <= 1024 for number in multipliers):
        raise ConversionError(
            f"{location}: {key!r} is {list(multipliers)}; expected 1 to {_MAX_LEVELS} multipliers"
        )
    return multipliers


def _groups(values: Mapping, location: str) -> int:
    """Groups of the GroupNorms, 0 for none: a setting of ours, without which there are 32 as published."""
    groups = _get(values, "norm_groups", int, location, VQConfig.norm_groups)
    return groups if groups == 0 else _count(values, "norm_groups", location, VQConfig.norm_groups)


def vq_config_of_json(values: Mapping, location: str) -> VQConfig:
    """The VQ-GAN that config.json's `vq_config` describes; `transformers`' defaults where it is silent."""
    table = values.get("vq_config") or {}
    if not isinstance(table, dict):
        raise ConversionError(f"{location}: 'vq_config' is {table!r}; expected a table")
    location = f"{location} (vq_config)"
    multipliers = _levels(table, "channel_multiplier", location) if "channel_multiplier" in table else None
    attend = _numbers(table, "attn_resolutions", location) if table.get("attn_resolutions") else ()
    return VQConfig(
        codes=_count(table, "num_embeddings", location, 8192),
        embed_dim=_count(table, "embed_dim", location, 256),
        latent_channels=_count(table, "latent_channels", location, 256),
        base_channels=_count(table, "base_channels", location, 128),
        channel_multipliers=multipliers or (1, 1, 2, 2, 4),
        res_blocks=_count(table, "num_res_blocks", location, 2, _MAX_BLOCKS, minimum=0),
        resolution=_count(table, "resolution", location, 512),
        attention_resolutions=attend,
        mid_attention=_get(table, "attn_type", str, location, "vanilla") == "vanilla",
        norm_groups=_groups(table, location),
    )


def resolution_of(values: Mapping, location: str) -> Literal["anyres", "base"]:
    """ "anyres" or "base", by the checkpoint's `architectures`."""
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"{location}: 'architectures' is {names!r}; expected a list of names")
    if not names:
        raise ConversionError(
            f"{location} names no 'architectures', which say any-res or base: give --resolution"
        )
    return "anyres" if any("anyres" in name.lower() for name in names) else "base"


def published_config(config: ModelConfig, names: Mapping[str, int], dtype: str) -> dict:
    """config.json in the published layout; `names` is the tokenizer's vocabulary, `dtype` the weights'."""
    decoder, vq = config.decoder, config.vq
    return {
        "architectures": [ANYRES if config.sequence.resolution == "anyres" else BASE],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": names.get("<s>", 0),
        "dropout": decoder.dropout,
        "eos_token_id": names.get("</s>", 2),
        "hidden_act": "silu",
        "hidden_size": decoder.width,
        "initializer_range": 0.02,
        "intermediate_size": decoder.mlp,
        "mask_image_logits": False,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_parallel_size": decoder.qk_norm_shards,
        "model_type": "chameleon",
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.depth,
        "num_key_value_heads": decoder.kv_heads,
        "pad_token_id": names.get("<pad>", 1),
        "rms_norm_eps": decoder.norm_eps,
        "rope_scaling": None,
        "rope_theta": decoder.rope_theta,
        "swin_norm": decoder.norm == "output",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": decoder.vocab_size,
        "vocabulary_map": dict(names),
        "vq_config": {
            "attn_resolutions": list(vq.attention_resolutions) or None,
            "attn_type": "vanilla" if vq.mid_attention else "none",
            "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.channel_multipliers),
            "embed_dim": vq.embed_dim,
            "latent_channels": vq.latent_channels,
            "model_type": "chameleon_vqgan",
            "num_embeddings": vq.codes,
            "num_res_blocks": vq.res_blocks,
            "resolution": vq.resolution,
            **_other_groups(vq),
        },
        "z_loss_weight": 1e-5,
    }


def published_siglip(config: SiglipConfig) -> dict:
    """config.json of a SigLIP folder, vision tower only: what an exported checkpoint cannot say itself."""
    vision = {
        "hidden_size": config.width,
        "image_size": config.image_size,
        "intermediate_size": config.mlp,
        "layer_norm_eps": config.norm_eps,
        "model_type": "siglip_vision_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch_size,
    }
    return {"architectures": ["SiglipModel"], "model_type": "siglip", "vision_config": vision}


def _other_groups(config: VQConfig) -> dict:
    """A setting of ours: the published code always has 32 groups, and no name for their number."""
    return {} if config.norm_groups == VQConfig.norm_groups else {"norm_groups": config.norm_groups}


def published_vq(config: VQConfig) -> dict:
    """The content of the vqgan.yaml that describes `config`."""
    ddconfig = {
        "attn_resolutions": list(config.attention_resolutions),
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "double_z": False,
        "dropout": 0.0,
        "in_channels": 3,
        "num_res_blocks": config.res_blocks,
        "out_ch": 3,
        "resolution": config.resolution,
        "z_channels": config.latent_channels,
    }
    if not config.mid_attention:
        ddconfig["attn_type"] = "none"
    params = {
        "ddconfig": ddconfig | _other_groups(config),
        "embed_dim": config.embed_dim,
        "n_embed": config.codes,
    }
    return {"model": {"params": params, "target": "vqgan.VQModel"}}


def check_stride(config: VQConfig, size: tuple[int, int]) -> None:
    """Raises ConversionError where a side of the discrete crop is no multiple of the VQ-GAN's stride."""
    for side in size:
        if side < 1 or side % config.stride:
            raise ConversionError(
                f"--image-size {side} is no multiple of the VQ-GAN's stride {config.stride}"
            )
