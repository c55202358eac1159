"""Published settings <-> ModelConfig: config.json of checkpoints and of SigLIP, Chameleon's vqgan.yaml."""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from unitoken_jax.config import DecoderConfig, ModelConfig, SiglipConfig, VQConfig
from unitoken_jax.convert.torch import known_keys
from unitoken_jax.convert.torch.report import ConversionError, Tensor
from unitoken_jax.convert.torch.settings import REQUIRED, SettingsTable

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
_MAX_LAYERS, _MAX_BLOCKS, _MAX_LEVELS = 1000, 100, 12

_ROPE_KEYS = ("rope_parameters", "rope_scaling")  # of `transformers` 5, and before


def decoder_config(values: Mapping, location: str) -> DecoderConfig:
    """The decoder that a checkpoint's config.json describes.

    Raises ConversionError where a setting would change the computation in a way that is not known here.
    """
    table = SettingsTable(values, location)
    width, heads = table.count("hidden_size"), table.count("num_attention_heads")
    kv_heads = table.count("num_key_value_heads", default=heads)
    shards = table.count("model_parallel_size", default=1)
    for name, number in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if width % heads or number % shards or heads % kv_heads:
            raise ConversionError(
                f"{location}: hidden_size {width}, {name} {number} and model_parallel_size {shards} do not "
                "divide evenly"
            )
    dropout = float(table.get("dropout", (int, float), 0.05))
    if not 0 <= dropout < 1:
        raise ConversionError(f"{location}: 'dropout' is {dropout}; expected 0 to less than 1")
    config = DecoderConfig(
        vocab_size=table.count("vocab_size"),
        width=width,
        depth=table.count("num_hidden_layers", maximum=_MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        mlp=table.count("intermediate_size"),
        norm_eps=table.positive("rms_norm_eps", 1e-5),
        rope_theta=_rope_theta(table),
        qk_norm_shards=shards,
        norm="output" if table.get("swin_norm", bool, False) else "pre",
        dropout=dropout,
    )
    fixed = {**known_keys.DECODER_FIXED, "head_dim": (width // heads, None)}
    table.close(fixed, known_keys.DECODER_HARMLESS)
    return config


def _rope_theta(table: SettingsTable) -> float:
    """The base of the rotary embedding, wherever config.json says it.

    `transformers` writes the key `rope_theta` up to version 4; from version 5 on (December 2025) it is inside
    the table `rope_parameters`, which also took the place of `rope_scaling`, and may hold a table for each
    kind of layer. The default is 10000 in both.
    """
    found = {}
    if table.get("rope_theta", (int, float), None) is not None:
        found["rope_theta"] = table.positive("rope_theta", 10000.0)
    for key in _ROPE_KEYS:
        found |= dict(_thetas_of(table.table(key)))
    if len(set(found.values())) > 1:
        said = ", ".join(f"{key} {theta}" for key, theta in found.items())
        raise ConversionError(
            f"{table.location} says several bases of the rotary embedding: {said}; expected one"
        )
    return next(iter(found.values()), 10000.0)


def _thetas_of(rope: SettingsTable) -> Iterator[tuple[str, float]]:
    """(where it stands, base) for every base in a table of rotary settings, which may say nothing else."""
    for key, value in rope.values.items():
        if isinstance(value, dict):
            yield from _thetas_of(rope.table(key))
    if rope.values.get("rope_theta") is not None:
        yield f"rope_theta of {rope.location}", rope.positive("rope_theta", 10000.0)
    rope.close(known_keys.ROPE_FIXED)


def is_tied(values: Mapping, location: str) -> bool:
    """Whether a checkpoint's output layer is its embeddings."""
    return SettingsTable(values, location).get("tie_word_embeddings", bool, False)


def siglip_config(folder: str | os.PathLike) -> SiglipConfig:
    """The vision tower that a SigLIP folder's config.json describes (a full model's, or a tower's alone)."""
    path = pathlib.Path(folder) / "config.json"
    whole = SettingsTable.of_json(path)
    if isinstance(whole.values.get("vision_config"), dict):
        vision = SettingsTable(whole.get("vision_config", dict), str(path))
        whole.close(known_keys.SIGLIP_FIXED, known_keys.SIGLIP_HARMLESS)
    elif whole.values.get("model_type") == "siglip_vision_model":
        vision = whole
    else:
        raise ConversionError(f"{path} has no 'vision_config': it is not SigLIP's")
    sizes: dict[str, Any] = {}
    for key, default in _SIGLIP_DEFAULTS.items():
        sizes[key] = (vision.positive if isinstance(default, float) else vision.count)(key, default)
    vision.close(known_keys.VISION_FIXED, known_keys.VISION_HARMLESS)
    if sizes["num_hidden_layers"] > _MAX_LAYERS or sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConversionError(
            f"{path}: {sizes['num_hidden_layers']} layers of width {sizes['hidden_size']} with "
            f"{sizes['num_attention_heads']} heads are no vision tower"
        )
    if sizes["patch_size"] > sizes["image_size"]:
        raise ConversionError(f"{path}: 'patch_size' is larger than 'image_size' {sizes['image_size']}")
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
    """Raises ConversionError where a SigLIP folder's settings, if any, prepare other pixels.

    Here they are as published: the whole image to a square, bicubic, 0..255 to -1..1. `transformers` keeps
    them in preprocessor_config.json, or (version 5) in a table of processor_config.json.
    """
    folder, side = pathlib.Path(folder), config.image_size
    tables = []
    if (path := folder / "preprocessor_config.json").is_file():
        tables.append(SettingsTable.of_json(path))
    if (path := folder / "processor_config.json").is_file():
        tables.append(SettingsTable.of_json(path).table("image_processor"))
    for table in tables:
        factor = table.get("rescale_factor", (int, float), 1 / 255)
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ConversionError(f"{table.location}: 'rescale_factor' is {factor}; only 1/255 is known here")
        size = table.table("size").values
        if any(value is not None for value in size.values()):
            known = {"height": side, "width": side}
            if {key: value for key, value in size.items() if value is not None} != known:
                raise ConversionError(f"{table.location}: 'size' is {size}; only {known} is known here")
        table.close(known_keys.PREPROCESSOR_FIXED, known_keys.PREPROCESSOR_HARMLESS)


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
        model = SettingsTable(yaml.safe_load(path.read_text(encoding="utf-8"))["model"], f"{path} (model)")
        params = SettingsTable(model.get("params", dict), str(path))
        table = SettingsTable(dict(params.get("ddconfig", dict)), f"{path} (ddconfig)")
    except Exception as error:  # whatever a damaged file leads to, in yaml and after it
        raise ConversionError(
            f"{path} has no model.params.ddconfig ({type(error).__name__}: {error}): it is not a VQ-GAN's"
        ) from error
    kind = model.get("target", str, "VQModel").rpartition(".")[2]
    if kind != "VQModel":
        raise ConversionError(f"{model.location}: 'target' is a {kind}; only VQModel is known here")
    vanilla = _is_vanilla(table)
    config = VQConfig(
        codes=params.count("n_embed"),
        embed_dim=params.count("embed_dim"),
        latent_channels=table.count("z_channels"),
        base_channels=table.count("ch"),
        channel_multipliers=_levels(table, "ch_mult"),
        res_blocks=table.count("num_res_blocks", maximum=_MAX_BLOCKS, minimum=0),
        resolution=table.count("resolution"),
        attention_resolutions=table.numbers("attn_resolutions") if vanilla else (),
        mid_attention=vanilla,
        norm_groups=_groups(table),
    )
    model.close(harmless=("base_learning_rate",))
    params.close(harmless=known_keys.VQ_PARAMS_HARMLESS)
    table.close(known_keys.DDCONFIG_FIXED, known_keys.DDCONFIG_HARMLESS)
    return config


def _is_vanilla(table: SettingsTable) -> bool:
    """Whether the VQ-GAN has attention blocks: "vanilla" ones, or ("none", null) none at all."""
    kind = table.values.get("attn_type", "vanilla")
    if kind is not None and table.get("attn_type", str, "vanilla") not in ("vanilla", "none"):
        raise ConversionError(
            f"{table.location}: 'attn_type' is {kind!r}; only 'vanilla' or 'none' is known here"
        )
    return kind == "vanilla"


def _levels(table: SettingsTable, key: str, default: Any = REQUIRED) -> tuple[int, ...]:
    """The channel multipliers of `key`, one for each level of the VQ-GAN."""
    multipliers = table.numbers(key, default)
    if not 1 <= len(multipliers) <= _MAX_LEVELS or not all(1 <= number <= 1024 for number in multipliers):
        raise ConversionError(
            f"{table.location}: {key!r} is {list(multipliers)}; expected 1 to {_MAX_LEVELS} multipliers"
        )
    return multipliers


def _groups(table: SettingsTable) -> int:
    """Groups of the GroupNorms, 0 for none: a setting of ours, without which there are 32 as published."""
    return table.count("norm_groups", VQConfig.norm_groups, minimum=0)


def vq_config_of_json(values: Mapping, location: str) -> VQConfig:
    """The VQ-GAN that config.json's `vq_config` describes; `transformers`' defaults where it is silent."""
    table = SettingsTable(values, location).table("vq_config")
    vanilla = _is_vanilla(table)
    attend = table.numbers("attn_resolutions") if table.values.get("attn_resolutions") else ()
    config = VQConfig(
        codes=table.count("num_embeddings", 8192),
        embed_dim=table.count("embed_dim", 256),
        latent_channels=table.count("latent_channels", 256),
        base_channels=table.count("base_channels", 128),
        channel_multipliers=_levels(table, "channel_multiplier", (1, 1, 2, 2, 4)),
        res_blocks=table.count("num_res_blocks", 2, _MAX_BLOCKS, minimum=0),
        resolution=table.count("resolution", 512),
        attention_resolutions=attend if vanilla else (),
        mid_attention=vanilla,
        norm_groups=_groups(table),
    )
    table.close(known_keys.VQ_FIXED, known_keys.VQ_HARMLESS)
    return config


def resolution_of(values: Mapping, location: str) -> Literal["anyres", "base"]:
    """ "anyres" or "base", by the checkpoint's `architectures`."""
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"{location}: 'architectures' is {names!r}; expected a list of names")
    if not names:
        raise ConversionError(
            f"{location} names no 'architectures', which say any-res or base: give --resolution"
        )
    if any("anyres" in name.lower() for name in names):
        return "anyres"
    if any(name.startswith(BASE) for name in names):
        return "base"
    raise ConversionError(
        f"{location}: 'architectures' is {names!r}, which is neither {ANYRES} nor {BASE}: give --resolution"
    )


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
