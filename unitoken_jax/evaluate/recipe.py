"""A run's recipe: everything that decides its predictions, written beside them and accepted to repeat them.

    benchmark, dataset, data (SHA-256), template, settings, model (SHA-256 of weights and of an adapter),
    versions, device

With the same recipe on the same kind of device, predictions are the same byte for byte.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from unitoken_jax.config import differences
from unitoken_jax.convert.torch.sources import checksum
from unitoken_jax.evaluate.faults import encodable, parse_json
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import as_path

if TYPE_CHECKING:
    from unitoken_jax.checkpoint.adapter import Adapter

FORMAT = 1
MAY_DIFFER = ("versions", "device")  # Keys in which a repeated run may differ: it is told, not refused.


def weights_id(model: str | os.PathLike) -> dict:
    """SHA-256 of what model directory `model` computes with: "params", "config.json", "tokenizer.json".

    `params` is of the values, however they lie on disk; one array, of a stack one layer, is in memory at one
    time. "sources" are the published files that manifest.json names. They do not decide alone: conversion can
    change the dtype, or draw an adapter.
    """
    import jax

    from unitoken_jax.checkpoint.model_directory import CONFIG, TOKENIZER, open_model

    path = as_path(model)
    opened = open_model(path)
    digest = hashlib.sha256()
    for name, leaf in sorted(opened.params.shapes.items()):
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        for layer in range(leaf.shape[0]) if "/layers/" in name else (None,):
            for array in jax.tree.leaves(opened.params.read(name, layer)):  # a quantized kernel has two
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    files = {name: checksum(path / name)["sha256"] for name in (CONFIG, TOKENIZER)}
    sources = {name: source["sha256"] for name, source in opened.manifest.get("sources", {}).items()}
    return {"params": digest.hexdigest(), **files, "sources": sources}


def make(
    benchmark: str,
    dataset: str,
    files: Mapping[str, pathlib.Path],
    template: Mapping,
    settings: Mapping,
    model: str,
    adapter: "Adapter | None" = None,
) -> dict:
    """The recipe of a run on this machine.

    Args:
        benchmark: its name.
        dataset: the name of its data set.
        files: paths of the files that are read, by what they are for.
        template: the wording of questions or prompts.
        settings: what else decides the outcome, such as seed and batch.
        model: path of the model directory.
        adapter: what it runs with. Its folder's name stands in the model's name, which files are called by.
    """
    import jax
    import PIL

    from unitoken_jax.checkpoint.model_directory import versions

    name = encodable(as_path(model).resolve().name)
    described = {"name": name, "weights": weights_id(model)}
    if adapter is not None:
        folder = encodable(as_path(adapter.path).resolve().name)
        described |= {"name": f"{name}+{folder}", "adapter": adapter.identity()}
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "dataset": dataset,
        "data": {use: checksum(path) | {"file": encodable(path.name)} for use, path in files.items()},
        "template": dict(template),
        "settings": dict(settings),
        "model": described,
        "versions": versions() | {"pillow": PIL.__version__},
        "device": {
            "backend": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
        },
    }


def write_json(path: pathlib.Path, values: Mapping | list) -> None:
    """Writes `values` as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def load(path: str | os.PathLike) -> dict:
    """Reads a recipe. Raises FileNotFoundError, or ValueError naming the file where it is none."""
    path = pathlib.Path(path)
    try:
        recipe = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no recipe at {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no recipe: not valid JSON ({error})") from None
    keys = ("format", "benchmark", "dataset", "data", "template", "settings", "model")
    missing = [key for key in keys if not isinstance(recipe, dict) or key not in recipe]
    if missing:
        raise ValueError(f"{path} is no recipe: it lacks {', '.join(missing)}")
    if recipe["format"] != FORMAT:
        raise ValueError(f"{path} has format {recipe['format']}; this version reads {FORMAT}")
    if not isinstance(recipe["benchmark"], str) or not isinstance(recipe["settings"], dict):
        raise ValueError(f"{path} is no recipe: expected a benchmark's name, and settings")
    return recipe


def check_same(
    expected: Mapping, actual: Mapping, source: str, may_differ: tuple[str, ...] = ()
) -> list[str]:
    """Lines on how the recipe `actual` differs from `expected`, which `source` names, in what may differ.

    `may_differ` are top-level keys. Raises ValueError where anything else differs, apart from names of files
    and models.
    """
    refused: list[str] = []
    notes: list[str] = []
    for key, (old, new) in sorted(differences(expected, actual).items()):
        # A file may be called otherwise as long as it holds the same; a model may, and come from other files.
        if key.startswith(("model.name", "model.weights.sources")) or (
            key.startswith("data.") and key.endswith(".file")
        ):
            continue
        destination = notes if key.split(".")[0] in may_differ else refused
        destination.append(f"{key}: {old!r} there, {new!r} here")
    if refused:
        raise ValueError(f"{source} is another run's:\n  " + "\n  ".join(refused))
    return notes


def settings_of(recipe: Mapping, choices: Mapping, source: str) -> dict:
    """The settings of `recipe`, which `source` names.

    Raises ValueError where one of `choices`, None where the user gave none, says something else.
    """
    for key, value in choices.items():
        if value is not None and recipe["settings"].get(key) != value:
            raise ValueError(
                f"{key} {value!r} was asked for, but {source} says {recipe['settings'].get(key)!r}: "
                "leave one of them out"
            )
    return dict(recipe["settings"])
