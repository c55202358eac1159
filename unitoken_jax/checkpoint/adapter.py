"""The adapter folder: what a LoRA run trained, and of which model it is a change.

    adapter.json         the LoRA's settings, the base's name and fingerprint, versions, how it was made
    adapter.safetensors  every trained parameter by its path, float32, stacked over layers as in a model
                         directory: pairs, and whatever else was trained whole (the MLP adapter, norms, ...)

With its base it is a model, and nothing else is needed: rank, alpha and targets are read, never given again.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unitoken_jax.checkpoint.model_directory import (
    CONFIG,
    ORBAX_MARKER,
    PARAMS,
    TOKENIZER,
    is_model_dir,
    load_settings,
    manifest_header,
    read_object,
)
from unitoken_jax.config import LoraConfig, ModelConfig, from_dict, to_dict
from unitoken_jax.model import sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.layers import LORA_SCALE
from unitoken_jax.model.lora import PAIR
from unitoken_jax.pretrained import default_model
from unitoken_jax.storage.atomic import atomic_folder
from unitoken_jax.storage.paths import absolute, as_path, is_remote

FORMAT = 1  # of the folder
SETTINGS, WEIGHTS = "adapter.json", "adapter.safetensors"
IN_RUN = "adapter"  # where a run directory has it
_WHOLE_FILE = 4 * 2**20  # bytes up to which a file of a model counts whole in its fingerprint
_SAMPLES, _SAMPLE = 16, 64 * 2**10  # of a larger one: how many pieces, of how many bytes


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that an adapter changes: where it was, and what it is (`fingerprint`)."""

    path: str
    fingerprint: str

    @classmethod
    def of(cls, model: str | os.PathLike) -> "Base":
        """The model directory `model` as a base. Raises FileNotFoundError where it is none."""
        return cls(str(absolute(model)), fingerprint(model))

    def __str__(self) -> str:
        return f"{self.path} (fingerprint {self.fingerprint[:12]})"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter folder's content: `params` are float32 arrays by path, in numpy."""

    path: str
    lora: LoraConfig
    base: Base
    params: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]

    def check_base(self, model: "str | os.PathLike | Base") -> None:
        """Raises ValueError naming both where `model`, a model directory or what is known of it already, is
        not what it was trained on."""
        other = model if isinstance(model, Base) else Base.of(model)
        if other.fingerprint != self.base.fingerprint:
            raise ValueError(
                f"the adapter {self.path} was trained on {self.base}; {other} is another model: name the "
                "first one, or a copy of it"
            )

    def find_base(self) -> str | None:
        """The path of its base where that is a model directory still, else None."""
        return self.base.path if is_model_dir(self.base.path) else None

    def identity(self) -> dict[str, Any]:
        """What decides what a base computes with it: the settings of the pairs ("lora"), and the SHA-256 of
        all parameters ("weights")."""
        digest = hashlib.sha256()
        for path, value in sorted(self.params.items()):
            digest.update(f"{path} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return {"lora": to_dict(self.lora), "weights": digest.hexdigest()}


def fingerprint(model: str | os.PathLike) -> str:
    """64 hexadecimal digits that tell the model directory `model` from any other model.

    A copy has the same; so has what `unitoken quantize` made of it. Of large files, pieces count: of a 7B
    model some hundred megabytes are read. Raises FileNotFoundError where it is no model directory.
    """
    folder = absolute(model)
    _, _, manifest = load_settings(folder)
    if "base_fingerprint" in manifest:
        return manifest["base_fingerprint"]
    digest = hashlib.sha256()
    files = [folder / CONFIG, folder / TOKENIZER]
    files += sorted(
        path
        for path in (folder / PARAMS).rglob("*")
        if path.is_file() and path.name != ORBAX_MARKER and not path.name.startswith("_")
    )
    for path in files:
        status: Any = path.stat()
        size = status.length if is_remote(path) else status.st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE:
                digest.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def save_adapter(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    lora: LoraConfig,
    base: Base,
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Writes the adapter folder `path`, complete or not at all; an older one there is replaced.

    Args:
        params: the trained parameters by path, stacked over layers; whole arrays, on this process.
        lora: the settings of the pairs.
        base: the model they belong to.
        manifest: what adapter.json says besides (the run's config, its scores).
    Raises FileExistsError where `path` is something else than an adapter folder.
    """
    from safetensors.numpy import save

    path = absolute(path)
    check_adapter_destination(path)
    values = {
        **manifest_header(FORMAT),
        "lora": to_dict(lora),
        "base": dataclasses.asdict(base),
        **(manifest or {}),
    }
    files = {
        WEIGHTS: save({name: np.ascontiguousarray(value, np.float32) for name, value in params.items()}),
        SETTINGS: (json.dumps(values, indent=1) + "\n").encode(),
    }
    if is_remote(path):
        for name, content in files.items():  # the settings last: a URL becomes an adapter with them
            (path / name).write_bytes(content)
        return
    with atomic_folder(path, replace=True) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def check_adapter_destination(path: str | os.PathLike) -> None:
    """Raises FileExistsError where `path` is neither free, nor empty, nor an adapter folder to replace."""
    path = as_path(path)
    if path.exists() and not is_adapter(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is no adapter folder: choose another place, or remove it")


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether `path` is an adapter folder (complete: they never exist half-written)."""
    return all((as_path(path) / name).exists() for name in (SETTINGS, WEIGHTS))


def adapter_folder(path: str | os.PathLike) -> pathlib.Path:
    """The adapter folder that `path` means: itself, or what is in it where it is a run directory."""
    folder = absolute(path)
    return folder / IN_RUN if not is_adapter(folder) and is_adapter(folder / IN_RUN) else folder


def load_adapter(path: str | os.PathLike) -> Adapter:
    """Reads the adapter folder `path`, or that of the run directory `path`. Raises FileNotFoundError, or
    ValueError naming what is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = adapter_folder(path)
    if not is_adapter(folder):
        raise FileNotFoundError(
            f"no adapter at {folder}: such a folder holds {SETTINGS} and {WEIGHTS}, which `unitoken "
            "finetune` writes (a model directory is named with --model)"
        )
    manifest = read_object(folder / SETTINGS)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder} is an adapter of format {manifest.get('format')!r}; this version reads {FORMAT}"
        )
    try:
        lora = from_dict(LoraConfig, manifest["lora"], "lora.")
        base = from_dict(Base, manifest["base"], "base.")
        params = load((folder / WEIGHTS).read_bytes())
        if other := sorted(name for name, value in params.items() if value.dtype != np.float32):
            raise ValueError(f"{other[0]} is {params[other[0]].dtype}, expected float32")
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"the adapter {folder} is damaged ({type(error).__name__}: {error})") from error
    return Adapter(str(folder), lora, base, params, manifest)


def model_of(path: str | os.PathLike | None, adapter: Adapter | None) -> str | os.PathLike:
    """The model directory that is meant by `path`, or where that is None by `adapter` or by nothing at all.

    Raises ValueError where it is not the one that `adapter` was trained on.
    """
    if path is None:
        path = (adapter and adapter.find_base()) or default_model()
    if adapter is not None:
        adapter.check_base(path)
    return path


def attach(
    adapter: Adapter,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = jnp.float32,
) -> dict:
    """The tree `params` with the adapter's parameters in it; the arrays of `params` are shared, not copied.

    `params` is a whole tree in either layout of the decoder's layers, of the model that `config` describes.
    Pairs and replaced parameters are cast to `dtype`, and placed on `mesh`. Raises ValueError listing every
    parameter that does not fit.
    """
    boxes = check_fit(adapter, config)
    values = {path: (value, dtype) for path, value in adapter.params.items()}
    for path in boxes:
        if path.endswith("/" + LORA_SCALE):
            values[path] = np.full(boxes[path].value.shape, adapter.lora.scale, np.float32), jnp.float32
    unstacked = "0" in params["decoder"]["layers"]
    tree = traverse_util.flatten_dict(dict(params), sep="/")
    for path, (value, cast) in values.items():
        names = boxes[path].names
        pieces: dict[str, Any] = {path: value}
        if unstacked and path.startswith("decoder/layers/"):
            names = names[1:]
            pieces = {path.replace("/layers/", f"/layers/{i}/", 1): layer for i, layer in enumerate(value)}
        for name, piece in pieces.items():
            tree[name] = _place(piece, names, mesh, cast)
    return traverse_util.unflatten_dict(tree, sep="/")


def _place(value: np.ndarray, names: tuple, mesh: jax.sharding.Mesh | None, dtype: Any) -> jax.Array:
    """`value` on the devices, cast, where an array whose axes have these logical names lies on `mesh`."""
    if mesh is None:
        return jnp.array(value, dtype)
    spec = sharding.partition_spec_for(names, value.shape, mesh.shape)
    cast = np.asarray(value).astype(dtype)
    return jax.make_array_from_callback(
        cast.shape, jax.sharding.NamedSharding(mesh, spec), lambda index: cast[index]
    )


def check_fit(adapter: Adapter, config: ModelConfig) -> dict[str, Any]:
    """The boxed shapes, by path, of all parameters of the model that `config` describes with `adapter` in it.

    Raises ValueError listing what the adapter lacks, what no parameter is, and what has another shape.
    """
    lora = dataclasses.replace(adapter.lora, dropout=0.0)
    boxes = traverse_util.flatten_dict(abstract_params(config, lora), sep="/")
    problems = [
        f"missing: {path} {tuple(box.value.shape)}"
        for path, box in boxes.items()
        if PAIR.search(path) and path not in adapter.params
    ]
    for path, value in adapter.params.items():
        if path not in boxes:
            problems.append(f"surplus: {path} {value.shape}")
        elif value.shape != tuple(boxes[path].value.shape):
            problems.append(f"shape: {path} is {value.shape}, the model needs {boxes[path].value.shape}")
    if problems:
        raise ValueError(
            f"the adapter {adapter.path} does not fit the model, {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )
    return boxes
