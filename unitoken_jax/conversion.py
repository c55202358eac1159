"""Published PyTorch weights -> a model directory, and back. Both directions read `convert/rules.py`.

`convert/` reads and names weights with numpy alone; here they meet the networks' shapes and Orbax.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
from flax import traverse_util
from flax.core import meta

from unitoken_jax.config import ModelConfig
from unitoken_jax.convert import configs, writers
from unitoken_jax.convert.assemble import Parameter, disassemble
from unitoken_jax.convert.report import ConversionError, Report
from unitoken_jax.convert.sources import checksums, describe, open_sources, parameters
from unitoken_jax.host.sequence import check
from unitoken_jax.host.tokenizer import Tokenizer
from unitoken_jax.model_dir import check_place, load_model, save_model

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
LICENCES = (
    "Chameleon's weights and VQ-GAN: Meta's Chameleon Research License (non-commercial research)",
    "SigLIP: Apache-2.0; UniToken: see the release the weights came from",
)


def convert(
    checkpoint: str | os.PathLike,
    siglip: str | os.PathLike | None = None,
    vqgan: str | os.PathLike | None = None,
    out: str | os.PathLike = "model",
    *,
    dtype: str | None = None,
    picture_size: int = 512,
    resolution: str | None = None,
    stage_one_start: bool = False,
    verify: bool = False,
    seed: int = 0,
) -> list[str]:
    """Writes the model directory `out`, complete or not at all; lines that say what was done.

    Args:
      checkpoint: a UniToken checkpoint, or a decoder alone (Lumina-mGPT, Chameleon): folder, or hub id.
      siglip: SigLIP folder. Its weights are used where the checkpoint has none, else its config alone.
      vqgan: Meta's `chameleon/tokenizer` folder; without it the VQ encoder may come from the checkpoint.
      dtype: of the stored weights ("float32", "bfloat16", "float16"), the VQ-GAN's apart; None: as they come.
      picture_size: side of the discrete crop in pixels.
      resolution: "anyres" or "base"; None: by the checkpoint's `architectures`.
      stage_one_start: zero the picture rows of `lm_head`.
      verify: read the directory again and compare every value with the sources.
      seed: of the random adapter, where a decoder alone is converted.
    Raises ConversionError listing every problem found.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"--dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    if resolution not in (None, "anyres", "base"):
        raise ConversionError(f"--resolution {resolution!r} is unknown; expected anyres or base")
    check_place(out)  # before minutes of reading
    report = Report()
    checkpoint, siglip, vqgan = (_local(source) for source in (checkpoint, siglip, vqgan))
    sources = open_sources(
        checkpoint, siglip, vqgan, report, picture_size=picture_size, resolution=resolution
    )
    lazy = parameters(sources, expected_shapes(sources.config), report)
    report.check(str(checkpoint))
    tokenizer = Tokenizer.load(sources.tokenizer)
    check(sources.config, tokenizer.vocabulary)
    flat = _read(lazy, dtype)
    _start(flat, sources, tokenizer, stage_one_start, dtype, seed)
    manifest = {
        "sources": checksums(sources.files),
        "left_out": {reason: len(names) for reason, names in report.ignored.items()},
        "notes": list(sources.notes),
        "licences": list(LICENCES),
    }
    _save(pathlib.Path(out), sources.config, flat, tokenizer, manifest)
    if verify:
        _verify(pathlib.Path(out), flat)
    total = sum(value.size for value in flat.values())
    return [f"{out}: {total:,} parameters", *describe(report, sources.notes)]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of `config`; no memory."""
    from unitoken_jax.model.init import abstract_params

    flat = traverse_util.flatten_dict(meta.unbox(abstract_params(config)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _local(source: str | os.PathLike | None) -> pathlib.Path | None:
    """A folder: itself, or the snapshot of a hub id ("owner/name") where huggingface_hub is installed."""
    if source is None or pathlib.Path(source).is_dir():
        return None if source is None else pathlib.Path(source)
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise ConversionError(f"{source} is no folder")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ConversionError(
            f"{source} is no folder; for a hub id, install huggingface_hub (pip install 'unitoken_jax[hub]')"
        ) from None
    return pathlib.Path(snapshot_download(str(source)))


def _read(lazy: Mapping[str, Parameter], dtype: str | None) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    flat = {}
    for path, parameter in tqdm(lazy.items(), unit="parameter", disable=None):  # None: only on a terminal
        flat[path] = parameter.read(None if dtype is None or path.startswith("vqgan/") else DTYPES[dtype])
    return flat


def _start(flat, sources, tokenizer, stage_one_start: bool, dtype: str | None, seed: int) -> None:
    """What no file gives, and what stage I wants otherwise."""
    from unitoken_jax.model.init import init_network

    kind = flat["decoder/lm_head/kernel"].dtype if dtype is None else DTYPES[dtype]
    for network in sources.fresh:
        tree = {network: init_network(sources.config, network, seed)}
        for path, value in traverse_util.flatten_dict(tree, sep="/").items():
            flat[path] = np.asarray(value).astype(kind)
    if stage_one_start:
        flat["decoder/lm_head/kernel"][:, tokenizer.vocabulary.code_ids] = 0


def _save(out: pathlib.Path, config: ModelConfig, flat, tokenizer: Tokenizer, manifest: dict) -> None:
    try:
        save_model(out, config, traverse_util.unflatten_dict(flat, sep="/"), tokenizer, manifest)
    except BaseException:
        shutil.rmtree(out.absolute().with_name(f".{out.name}.part"), ignore_errors=True)
        raise


def _verify(out: pathlib.Path, flat: Mapping[str, np.ndarray]) -> None:
    stored = traverse_util.flatten_dict(load_model(out).params, sep="/")
    wrong = [
        path
        for path, value in flat.items()
        if np.asarray(stored[path]).dtype != value.dtype
        or np.asarray(stored[path]).tobytes() != value.tobytes()
    ]
    if wrong or stored.keys() != flat.keys():
        raise ConversionError(
            f"{out} does not hold what was written to it: {', '.join(wrong)}. Convert again"
        )


def export(
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    vqgan: bool = False,
    per_head: bool = False,
    shard_bytes: int = writers.SHARD_BYTES,
) -> list[str]:
    """Writes a model directory in the published layout to the new folder `out`; lines that say what.

    `vqgan`: also Chameleon's tokenizer folder, its weights as safetensors. `per_head`: QK-norms with a row a
    head, which `transformers` wants, instead of a row a shard as published. SigLIP's settings go to
    SigLIP/config.json, as a published config.json has no place for them.
    Raises FileExistsError where `out` is there and not empty.
    """
    out = pathlib.Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another place, or remove it")
    config, params, tokenizer, _ = load_model(model)
    flat = traverse_util.flatten_dict(params, sep="/")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        files = writers.write_sharded(part, _published(config, flat, per_head), shard_bytes)
        dtype = str(flat["decoder/lm_head/kernel"].dtype)
        _write_settings(part, config, tokenizer, dtype)
        if vqgan:
            _write_vqgan(part / "chameleon" / "tokenizer", config, flat, tokenizer)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()
        os.rename(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return [f"{out}: {len(files)} shards, {dtype}"]


def _published(config: ModelConfig, flat: Mapping, per_head: bool) -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted(path for path in flat if not path.startswith("vqgan/")):
        value = np.asarray(flat[path])
        if per_head and "/q_norm/" in path:
            value = value.repeat(config.decoder.heads // value.shape[1], axis=1)
        if per_head and "/k_norm/" in path:
            value = value.repeat(config.decoder.kv_heads // value.shape[1], axis=1)
        yield from disassemble(path, value, {"siglip": "vit."})


def _json(path: pathlib.Path, values: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_settings(folder: pathlib.Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> None:
    tokenizer.save(folder / "tokenizer.json")
    names = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in names.get("added_tokens", [])}
    ids |= names["model"]["vocab"]
    _json(folder / "config.json", configs.published_config(config, dict(sorted(ids.items())), dtype))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _json(folder / "special_tokens_map.json", special)
    limits = {"model_max_length": 4096, "clean_up_tokenization_spaces": False}
    _json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special, **limits}
    )
    _json(folder / "SigLIP" / "config.json", configs.published_siglip(config.siglip))


def _write_vqgan(folder: pathlib.Path, config: ModelConfig, flat: Mapping, tokenizer: Tokenizer) -> None:
    import yaml

    paths = sorted(path for path in flat if path.startswith("vqgan/"))
    if not paths:
        raise ConversionError("this model directory has no VQ-GAN to export: convert it with --vqgan")
    folder.mkdir(parents=True)
    tensors = dict(pair for path in paths for pair in disassemble(path, np.asarray(flat[path])))
    writers.write_safetensors(folder / "vqgan.safetensors", tensors)
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(configs.published_vq(config.vq)), encoding="utf-8")
    tokenizer.save(folder / "text_tokenizer.json")


def inspect(model: str | os.PathLike) -> list[str]:
    """Lines on a model directory: its sources, settings, and every parameter with shape and dtype."""
    config, params, _, manifest = load_model(model)
    lines = [f"{model}: made {manifest.get('created', 'at an unknown time')}"]
    for name, source in manifest.get("sources", {}).items():
        lines.append(f"source {name}: {source.get('bytes', 0):,} bytes, sha256 {source.get('sha256', '?')}")
    lines += [f"note: {note}" for note in manifest.get("notes", [])]
    for field in dataclasses.fields(config):
        lines.append(f"{field.name}: {getattr(config, field.name)}")
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, value in sorted(flat.items()):
        lines.append(f"{path:<60} {tuple(value.shape)!s:<24} {value.dtype}")
    for network in sorted({path.split("/")[0] for path in flat}):
        size = sum(value.size for path, value in flat.items() if path.split("/")[0] == network)
        lines.append(f"{network}: {size:,} parameters")
    return lines
