"""What a user points at -> one plan: the configuration, and which file gives which network."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Literal

from unitoken_jax.config import ModelConfig, SequenceConfig, VQConfig, published_sequence
from unitoken_jax.convert.torch import configs, rules
from unitoken_jax.convert.torch.assemble import Parameter, Shapes, assemble
from unitoken_jax.convert.torch.readers import read_file, read_folder, read_json
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector, Tensor
from unitoken_jax.storage.paths import file_digest, size_of

VQ_IN_CHECKPOINT = "model.vqmodel."
_VISION = "vision_model."
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Group:
    """Tensors that go together: `networks` are made of them, `prefix` stands before a network's names."""

    tensors: Mapping[str, Tensor]
    networks: tuple[str, ...]
    prefix: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Sources:
    """Everything about a conversion but the weights' values."""

    config: ModelConfig
    groups: tuple[Group, ...]
    fresh: tuple[str, ...]  # networks no file gives: they start random
    absent: tuple[str, ...]  # parameter groups the model directory will not have
    files: dict[str, pathlib.Path]  # "checkpoint/config.json" -> file
    tokenizer: pathlib.Path
    notes: tuple[str, ...]


def open_sources(
    checkpoint: str | os.PathLike,
    siglip: str | os.PathLike | None,
    vqgan: str | os.PathLike | None,
    report: ProblemCollector,
    *,
    image_size: int | tuple[int, int] = 512,
    resolution: Literal["anyres", "base"] | None = None,
) -> Sources:
    """Reads configurations and the files' indexes, no weights.

    Args:
      siglip: SigLIP's folder; None where the checkpoint has a tower of known shapes.
      vqgan: Chameleon's tokenizer folder; None: the checkpoint may have the VQ-GAN.
      report: gets the problems with shards.
      image_size: side of the discrete crop in pixels, or (height, width).
      resolution: "anyres" or "base"; None: as the checkpoint's `architectures` say.
    Raises ConversionError where a source is missing, or says what no model here can be.
    """
    checkpoint = pathlib.Path(checkpoint)
    values = read_json(checkpoint / "config.json")
    location = str(checkpoint / "config.json")
    tensors, weights, names = read_folder(checkpoint, report)
    unified = any(name.startswith(("vit.", "adapter.")) for name in names)
    if configs.is_tied(values, location):
        tensors = _tied(tensors, report)
    files = {f"checkpoint/{path.name}": path for path in [checkpoint / "config.json", *weights]}
    notes = []
    if unified:
        if siglip is None and any(name.startswith("vit.") for name in names - tensors.keys()):
            report.check(str(checkpoint))  # what is missing, before what its shapes would say
        vision = configs.siglip_of_shapes(tensors) if siglip is None else configs.siglip_config(siglip)
        groups = [(["decoder", "adapter", "siglip"], rules.PREFIX)]
        sequence = published_sequence(resolution=resolution or configs.resolution_of(values, location))
    else:
        if siglip is None:
            raise ConversionError(
                f"{checkpoint} is a decoder alone (no adapter.* and vit.* tensors): give --siglip, a SigLIP "
                "folder, for a stage-I starting point"
            )
        vision = configs.siglip_config(siglip)
        groups = [(["decoder"], {})]
        sequence = SequenceConfig(resolution=resolution or "anyres")
        notes.append("a stage-I starting point: decoder and SigLIP as published, the adapter random")
    if siglip is not None:
        configs.check_preprocessor(siglip, vision)
        files["siglip/config.json"] = pathlib.Path(siglip) / "config.json"
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(VQ_IN_CHECKPOINT)}
    vq, vq_groups, absent = _vq(vqgan, values, location, inside, report, files)
    outside = {name: tensor for name, tensor in tensors.items() if name not in inside}
    network_groups = [Group(outside, tuple(networks), prefix) for networks, prefix in groups]
    if not unified:
        assert siglip is not None
        network_groups.append(_siglip_group(pathlib.Path(siglip), report, files))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    size = (height, width)
    configs.check_stride(vq, size)
    sequence = dataclasses.replace(sequence, image_size=size)
    config = ModelConfig(vision, vq, configs.decoder_config(values, location), sequence)
    if "vqgan/decoder" in absent or "vqgan" in absent:
        notes.append("no VQ decoder: the model answers, but cannot draw (give --vqgan)")
    tokenizer = _tokenizer(checkpoint, vqgan, files)
    fresh = () if unified else ("adapter",)
    return Sources(config, (*network_groups, *vq_groups), fresh, absent, files, tokenizer, tuple(notes))


def _siglip_group(folder: pathlib.Path, report: ProblemCollector, files: dict[str, pathlib.Path]) -> Group:
    tensors, weights, names = read_folder(folder, report)
    files.update({f"siglip/{path.name}": path for path in weights})
    prefix = _VISION if any(name.startswith(_VISION) for name in names) else ""
    return Group(tensors, ("siglip",), {"siglip": prefix})


def _tied(tensors: dict[str, Tensor], report: ProblemCollector) -> dict[str, Tensor]:
    """The output layer is the embeddings', whatever else the files hold."""
    if _EMBEDDINGS not in tensors:
        return tensors
    if _HEAD in tensors:
        report.ignore("tied to the embeddings (tie_word_embeddings)", _HEAD)
    return tensors | {_HEAD: dataclasses.replace(tensors[_EMBEDDINGS], name=_HEAD)}


def _vq(
    vqgan: str | os.PathLike | None,
    values: Mapping,
    location: str,
    inside: Mapping[str, Tensor],
    report: ProblemCollector,
    files: dict[str, pathlib.Path],
) -> tuple[VQConfig, list[Group], tuple[str, ...]]:
    """(VQConfig, groups, absent parameter groups): from the VQ-GAN folder, else `inside` the checkpoint."""
    if vqgan is not None:
        folder = pathlib.Path(vqgan)
        config = configs.vq_config_of_yaml(folder / "vqgan.yaml")
        weights = [folder / name for name in ("vqgan.ckpt", "vqgan.safetensors") if (folder / name).is_file()]
        if not weights:
            raise ConversionError(f"{folder} has neither vqgan.ckpt nor vqgan.safetensors")
        if len(weights) > 1:
            raise ConversionError(
                f"{folder} has both {weights[0].name} and {weights[1].name}: remove the one that is not meant"
            )
        files["vqgan/vqgan.yaml"] = folder / "vqgan.yaml"
        files[f"vqgan/{weights[0].name}"] = weights[0]
        for name in inside:
            report.ignore("the VQ-GAN's folder has it", name)
        return config, [Group(read_file(weights[0]), ("vqgan",), {"vqgan": ""})], ()
    config = configs.vq_config_of_json(values, location)
    if not inside:
        return config, [], ("vqgan",)
    absent = tuple(
        f"vqgan/{module}"
        for module in ("decoder", "post_quant_conv")
        if not any(name.startswith(f"{VQ_IN_CHECKPOINT}{module}.") for name in inside)
    )
    return config, [Group(inside, ("vqgan",), {"vqgan": VQ_IN_CHECKPOINT})], absent


def _tokenizer(
    checkpoint: pathlib.Path, vqgan: str | os.PathLike | None, files: dict[str, pathlib.Path]
) -> pathlib.Path:
    """The text tokenizer of the checkpoint, or else of the VQ-GAN's folder; it is added to `files`."""
    candidates = [checkpoint / "tokenizer.json"]
    if vqgan is not None:
        candidates.append(pathlib.Path(vqgan) / "text_tokenizer.json")
    for path in candidates:
        if path.is_file():
            files[f"tokenizer/{path.name}"] = path
            return path
    raise ConversionError(f"no text tokenizer: looked for {' and '.join(map(str, candidates))}")


def parameters(
    sources: Sources, expected: Shapes, report: ProblemCollector, one_dtype: bool = True
) -> dict[str, Parameter]:
    """All parameters the files give, not read yet. `expected`: our path -> shape, of the configuration.

    `one_dtype`: a network's tensors in several dtypes are a problem.
    """
    lazy: dict[str, Parameter] = {}
    for group in sources.groups:
        group_shapes = {
            path: shape
            for path, shape in expected.items()
            if path.split("/")[0] in group.networks
            and not any(path.startswith(lack + "/") for lack in sources.absent)
        }
        lazy |= assemble(group.tensors, group_shapes, report, group.prefix, one_dtype)
    return lazy


def checksum(path: pathlib.Path) -> dict:
    """For the manifest: bytes and SHA-256 of a source file."""
    return {"bytes": size_of(path), "sha256": file_digest(path)}


def describe(report: ProblemCollector, notes: Iterable[str]) -> list[str]:
    """Lines for the user: what was left out by rule, and what to know about the model."""
    left = [f"left out: {len(names)} tensors ({reason})" for reason, names in report.ignored.items()]
    return [*left, *(f"note: {note}" for note in (*notes, *report.notes))]
