"""A model directory -> the published layout: what `from_torch.convert` reads, by the same name tables."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unitoken_jax.checkpoint.model_directory import open_unquantized
from unitoken_jax.checkpoint.param_store import contiguous
from unitoken_jax.config import DecoderConfig, ModelConfig
from unitoken_jax.convert.torch import configs, rules, writers
from unitoken_jax.convert.torch.report import ConversionError, Tensor
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_folder
from unitoken_jax.storage.paths import absolute


def export(
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    vqgan: bool = False,
    per_head: bool = False,
    shard_bytes: int = writers.SHARD_BYTES,
) -> list[str]:
    """Writes a model directory in the published layout to the new folder `out`; lines that say what.

    SigLIP's settings go to SigLIP/config.json, as a published config.json has no key for them. One tensor is
    in memory at a time.

    Args:
      vqgan: also write Chameleon's tokenizer folder, its weights as safetensors.
      per_head: QK-norms with a row a head, which `transformers` wants, instead of a row a shard as published.
      shard_bytes: size of a shard at most, unless it holds a single tensor.
    Raises FileExistsError where `out` is there and not empty.
    """
    out = free_destination(out)
    config, params, tokenizer, _ = open_unquantized(model, "exporting")
    heads = config.decoder if per_head else None
    tensors = [tensor for path in params.shapes for tensor in torch_tensors(params, path, heads)]
    codec = [tensor for tensor in tensors if tensor.file == "vqgan"]
    if vqgan and not codec:
        raise ConversionError("this model directory has no VQ-GAN to export: convert it with --vqgan")
    with atomic_folder(out) as folder:
        published = _with_a_bar([tensor for tensor in tensors if tensor.file != "vqgan"])
        files = writers.write_sharded(folder, published, shard_bytes)
        dtype = str(params.shapes["decoder/lm_head/kernel"].dtype)
        _write_settings(folder, config, tokenizer, dtype)
        if vqgan:
            _write_vqgan(folder / "chameleon" / "tokenizer", config, codec, tokenizer)
    return [f"{out}: {len(files)} shards, {dtype}"]


def free_destination(out: str | os.PathLike) -> pathlib.Path:
    """The absolute path of `out`. Raises FileExistsError where something is there but an empty folder."""
    out = absolute(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another place, or remove it")
    return out


class Params(Protocol):
    """Parameters by path: their shapes and dtypes, and the values of a layer or (None) of all of one."""

    @property
    def shapes(self) -> Mapping[str, Any]: ...

    def read(self, path: str, layer: int | None = None, /) -> Any: ...


def torch_tensors(params: Params, path: str, heads: DecoderConfig | None) -> Iterator[Tensor]:
    """The torch tensors of a parameter, not read yet; `file` is its network. `heads`: QK-norms a head."""
    network = path.split("/")[0]
    shape, dtype = tuple(params.shapes[path].shape), np.dtype(params.shapes[path].dtype)
    rows = 1
    if heads is not None and "/q_norm/" in path:
        rows = heads.heads // shape[1]
    if heads is not None and "/k_norm/" in path:
        rows = heads.kv_heads // shape[1]
    for mapping in rules.tensor_mappings(path, shape):

        def read(mapping=mapping) -> np.ndarray:
            value = mapping.layout.to_torch(params.read(path, mapping.layer))
            return contiguous(value if rows == 1 else value.repeat(rows, axis=0), dtype)

        torch_shape = (mapping.shape[0] * rows, *mapping.shape[1:]) if rows > 1 else mapping.shape
        yield Tensor(rules.PREFIX.get(network, "") + mapping.torch, torch_shape, dtype, network, read)


def _with_a_bar(tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """By name; a progress bar moves as they are read."""
    from tqdm import tqdm

    sizes = [math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors]
    bar = tqdm(total=sum(sizes), unit="B", unit_scale=True, disable=None)

    def read(tensor: Tensor, size: int) -> np.ndarray:
        value = tensor.read()
        bar.update(size)
        return value

    for tensor, size in zip(tensors, sizes):
        yield tensor.name, dataclasses.replace(tensor, read=functools.partial(read, tensor, size))


def _write_json(path: pathlib.Path, values: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_settings(folder: pathlib.Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> None:
    """Writes all that a published checkpoint holds beside its weights."""
    tokenizer.save(folder / "tokenizer.json")
    names = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in names.get("added_tokens", [])}
    ids |= names["model"]["vocab"]
    _write_json(folder / "config.json", configs.published_config(config, dict(sorted(ids.items())), dtype))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    limits = {"model_max_length": 4096, "clean_up_tokenization_spaces": False}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special, **limits}
    )
    _write_json(folder / "SigLIP" / "config.json", configs.published_siglip(config.siglip))


def _write_vqgan(
    folder: pathlib.Path, config: ModelConfig, tensors: Sequence[Tensor], tokenizer: Tokenizer
) -> None:
    import yaml

    folder.mkdir(parents=True)
    writers.write_safetensors(folder / "vqgan.safetensors", {tensor.name: tensor for tensor in tensors})
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(configs.published_vq(config.vq)), encoding="utf-8")
    tokenizer.save(folder / "text_tokenizer.json")
