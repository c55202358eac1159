"""Adapter folders -> the files of `peft`, and back (`convert/torch/peft.py` has the format)."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from unitoken_jax.checkpoint.adapter import (
    Adapter,
    Base,
    check_adapter_destination,
    load_adapter,
    save_adapter,
)
from unitoken_jax.checkpoint.model_directory import load_settings
from unitoken_jax.config import DecoderConfig, LoraConfig
from unitoken_jax.convert.from_torch import expected_shapes
from unitoken_jax.convert.to_torch import free_destination, torch_tensors
from unitoken_jax.convert.torch import peft, rules
from unitoken_jax.convert.torch.assemble import Parameter, Shapes, assemble
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector, Tensor
from unitoken_jax.convert.torch.sources import checksum
from unitoken_jax.convert.torch.writers import write_safetensors
from unitoken_jax.model.lora import PAIR, target_kernels
from unitoken_jax.storage.atomic import atomic_folder
from unitoken_jax.storage.paths import as_path


def export_peft(
    adapter: str | os.PathLike,
    out: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    base_name: str | None = None,
) -> list[str]:
    """Writes the adapter folder `adapter` as `peft` keeps adapters, to the new folder `out`; lines that say
    what.

    `peft` loads it over the decoder that `export(per_head=True)` writes for `transformers`. What that one has
    no module for stands in a file of its own, so that `import_peft` finds it again.

    Args:
      adapter: the adapter folder.
      out: the folder of adapter_config.json and adapter_model.safetensors.
      model: the model that it was trained on; needed where QK-norms were trained and it is not where it was.
      base_name: what adapter_config.json calls the base, a folder or a hub id of `transformers`' files.
    Raises FileExistsError where `out` is there and not empty, ValueError where `peft` cannot express it.
    """
    out = free_destination(out)
    change = load_adapter(adapter)
    if model is not None:
        change.check_base(model)
    if not any(map(PAIR.search, change.params)):
        raise ValueError(f"the adapter {change.path} has no LoRA pairs, and `peft` keeps nothing else")
    pairs, saved = _decoder_modules(change)
    heads = _decoder_config(change, model) if any("_norm" in name for name in saved) else None
    stored = _Arrays(change.params)
    files: dict[str, dict[str, Tensor]] = {peft.WEIGHTS: {}, peft.UNITOKEN_WEIGHTS: {}}
    for path in sorted(change.params):
        file = peft.WEIGHTS if _in_decoder(path) else peft.UNITOKEN_WEIGHTS
        for tensor in torch_tensors(stored, path, heads):
            files[file][peft.PREFIX + tensor.name] = tensor
    ours = {
        "file": peft.UNITOKEN_WEIGHTS,
        "parameters": [path for path in sorted(change.params) if not _in_decoder(path)],
        "base": {"name": pathlib.PurePath(change.base.path).name, "fingerprint": change.base.fingerprint},
    }
    settings = _peft_settings(change.lora, pairs, saved) | {
        "auto_mapping": {"unitoken": ours},
        "base_model_name_or_path": base_name,
    }
    with atomic_folder(out) as folder:
        for name, tensors in files.items():
            if tensors or name == peft.WEIGHTS:
                write_safetensors(folder / name, tensors)
        text = json.dumps(dict(sorted(settings.items())), indent=2) + "\n"
        (folder / peft.CONFIG).write_text(text, encoding="utf-8")
    lines = [f"{out}: {len(files[peft.WEIGHTS])} tensors for `peft`"]
    if ours["parameters"]:
        beside = f"{len(files[peft.UNITOKEN_WEIGHTS])} tensors that it has no module for"
        lines.append(f"{out / peft.UNITOKEN_WEIGHTS}: {beside}: keep the files together")
    return lines


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Parameters in memory, read as `StoredParams` are."""

    shapes: Mapping[str, np.ndarray]

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        return self.shapes[path] if layer is None else self.shapes[path][layer]


def _in_decoder(path: str) -> bool:
    return path.startswith("decoder/")


def _modules(path: str, shape: tuple[int, ...]) -> list[str]:
    """The torch modules that the parameter `path` is of, by layer ("vit.encoder.layers.0.mlp.fc1", ...)."""
    prefix = rules.PREFIX.get(path.split("/")[0], "")
    names = [mapping.torch for mapping in rules.tensor_mappings(path, shape)]
    if PAIR.search(path):
        names = [name.removesuffix(".weight") for name in names]
    return [prefix + name.rpartition(".")[0] for name in names]


def _decoder_modules(adapter: Adapter) -> tuple[set[str], set[str]]:
    """The decoder's modules with a pair, and those that were trained whole, by the shortest name that means
    no other module of it. Raises ValueError where `peft` cannot keep one of them."""
    pairs: set[str] = set()
    saved: set[str] = set()
    full_names = set()
    for path, value in adapter.params.items():
        if not _in_decoder(path):
            continue
        modules = _modules(path, value.shape)
        name = modules[0].rpartition(".")[2] if "/layers/" in path else modules[0]
        (pairs if PAIR.search(path) else saved).add(name)
        if not PAIR.search(path):
            full_names.add(modules[0])
    if both := pairs & saved:
        raise ValueError(
            f"the adapter {adapter.path} holds {', '.join(sorted(both))} whole and a pair beside it, which "
            "`peft` cannot keep: merge it with its base instead (`unitoken merge`)"
        )
    absent = [
        rule.ours
        for rule in rules.DECODER
        if rule.torch.rpartition(".")[0].replace("{i}", "0") in full_names and rule.ours not in adapter.params
    ]
    if absent:
        raise ValueError(
            f"the adapter {adapter.path} lacks {', '.join(absent)}, which was not trained: `peft` keeps "
            "modules whole or not at all"
        )
    return pairs, saved


def _decoder_config(adapter: Adapter, model: str | os.PathLike | None) -> DecoderConfig:
    """The decoder's settings, of `model` or of the base where it was."""
    base = adapter.find_base() if model is None else model
    if base is None:
        raise ValueError(
            f"the adapter {adapter.path} holds norms, which `transformers` lays out by the number of heads, "
            f"and its base {adapter.base} is not there: name it with --model"
        )
    adapter.check_base(base)
    return load_settings(base)[0].decoder


def _peft_settings(lora: LoraConfig, pairs: Iterable[str], saved: Iterable[str]) -> dict[str, Any]:
    """The keys of adapter_config.json that say what is computed, and what `peft` wants hits."""
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "r": lora.rank,
        "revision": None,
        "target_modules": sorted(pairs) or peft.NO_TARGETS,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": lora.rslora,
    }


def import_peft(folder: str | os.PathLike, model: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Writes the folder of a LoRA adapter that `peft` or `export_peft` wrote as the adapter folder `out` over
    the model directory `model`; lines that say what was done.

    Raises FileExistsError where `out` is something else, ConversionError listing every tensor that lacks, is
    one too many or has another shape, and naming a setting that would change the computation, or both models
    where `export_peft` wrote it for another one.
    """
    check_adapter_destination(out)
    folder = as_path(folder)
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder")
    settings = peft.read_settings(folder)
    files = peft.weight_files(folder, settings)
    shapes = expected_shapes(load_settings(model)[0])
    report = ProblemCollector()
    tensors = [peft.read_tensors(file, report) for file in files]
    settings = peft.with_unasked(settings, tensors[0])
    for name in set(tensors[0]).intersection(*tensors[1:]) if tensors[1:] else ():
        report.add("duplicate", f"{name} is in {files[0].name} and in {files[1].name}")
    by_name = {name: tensor for group in tensors for name, tensor in group.items()}
    kernels, whole = _expected_modules(settings, tensors[0], shapes, report)
    lora = _lora_config(settings, kernels, shapes, report)
    expected = {path: shapes[path] for path in whole}
    for path in kernels:
        *stack, inputs, outputs = shapes[path]
        module = path.removesuffix("kernel")
        expected[module + "lora_a"] = (*stack, inputs, lora.rank)
        expected[module + "lora_b"] = (*stack, lora.rank, outputs)
    lazy = assemble(by_name, expected, report, rules.PREFIX, one_dtype=False)
    report.check(str(folder))
    if settings.exported is not None:
        recorded = Base(settings.exported.base_name, settings.exported.base_fingerprint)
        Adapter(str(folder), lora, recorded, {}, {}).check_base(model)
    params = {path: _value(parameter) for path, parameter in lazy.items()}
    manifest = {"sources": {file.name: checksum(file) for file in (folder / peft.CONFIG, *files)}}
    save_adapter(out, params, lora, Base.of(model), manifest)
    scale = f"rank {lora.rank}, alpha {lora.alpha:g}{', rsLoRA' if lora.rslora else ''}"
    return [
        f"{out}: {len(kernels)} kernels with pairs ({scale}), {len(whole)} parameters whole",
        *report.notes,
    ]


def _value(parameter: Parameter) -> np.ndarray:
    """float32, layers stacked."""
    pieces = [piece.read().astype(np.float32) for piece in parameter.pieces]
    return pieces[0] if parameter.pieces[0].mapping.layer is None else np.stack(pieces)


def _expected_modules(
    settings: peft.PeftSettings, names: Iterable[str], shapes: Shapes, report: ProblemCollector
) -> tuple[list[str], list[str]]:
    """Paths of the kernels that have a pair, and of the parameters that are there whole.

    `names` are those of what `peft` wrote. It knew SigLIP and the MLP adapter where one of them is theirs.
    """
    starts = {"decoder": "", "siglip": rules.PREFIX["siglip"], "adapter": "adapter."}
    networks = [
        network for network, start in starts.items() if not start or any(n.startswith(start) for n in names)
    ]
    known = {path: shape for path, shape in shapes.items() if path.split("/")[0] in networks}
    adaptable = target_kernels(shapes, LoraConfig(rank=1, targets=""))
    kernels = set(_matching_paths(adaptable, known, settings.has_pair, "target_modules", report))
    whole = set(_matching_paths(known, known, settings.is_saved, "modules_to_save", report))
    for path in settings.exported.parameters if settings.exported else ():
        kernel = PAIR.sub("/kernel", path)
        if kernel not in (shapes if kernel == path else adaptable):
            report.add("config", f"it holds {path}, which this model has no place for")
        elif kernel == path:
            whole.add(path)
        else:
            kernels.add(kernel)
    if not kernels:
        report.add(
            "config", f"target_modules {settings.target_modules!r} names no linear layer of this model"
        )
    return sorted(kernels), sorted(whole)


def _matching_paths(
    paths: Iterable[str], known: Shapes, matches: Callable[[str], bool], key: str, report: ProblemCollector
) -> list[str]:
    """The parameters of `paths` whose modules `matches` says; of some layers alone is a problem."""
    matching = []
    for path in paths:
        modules = _modules(path, known[path]) if path in known else []
        hits = [module for module in modules if matches(module)]
        if hits and len(hits) < len(modules):
            other = next(module for module in modules if module not in hits)
            report.add("config", f"{key} means {hits[0]}, but not {other}: here, every layer or none")
        elif hits:
            matching.append(path)
    return matching


def _lora_config(
    settings: peft.PeftSettings, kernels: list[str], shapes: Shapes, report: ProblemCollector
) -> LoraConfig:
    """The pairs' settings; rank and alpha are those of all of them."""
    pairs = {
        settings.rank_and_alpha(module): module for path in kernels for module in _modules(path, shapes[path])
    }
    if len(pairs) > 1:
        several = "; ".join(f"{module}: r {rank}, alpha {alpha}" for (rank, alpha), module in pairs.items())
        report.add(
            "config", f"rank_pattern or alpha_pattern tells pairs apart ({several}): here, all are alike"
        )
    rank, alpha = next(iter(pairs)) if len(pairs) == 1 else (settings.rank, settings.alpha)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or alpha <= 0:
        report.add("config", f"a pair's r is {rank!r} and its alpha {alpha!r}; expected positive numbers")
        rank, alpha = settings.rank, settings.alpha
    targets = LoraConfig().targets
    if target_kernels(shapes, LoraConfig(rank=rank, targets=targets)) != kernels:
        targets = f"^({'|'.join(path.removesuffix('/kernel') for path in kernels)})/kernel$"
    return LoraConfig(rank, float(alpha), settings.rslora, settings.dropout, targets)
