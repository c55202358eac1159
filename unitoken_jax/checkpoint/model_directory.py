"""The model directory, which training and conversion write and everything else reads.

    config.json      ModelConfig
    tokenizer.json   text tokenizer with the control tokens
    params/          Orbax: one tree {"siglip", "adapter", "decoder", "vqgan"}
    manifest.json    versions, when it was made, source files and their SHA-256, licence notes

Nothing else is needed to run it, and nothing in it is code. In a quantized one (`quantize_model` writes it)
each of the decoder's kernels is two arrays, "values" and "scales" (`param_store.quantized_arrays`): it runs
as it is, and cannot be trained or exported.
"""

import concurrent.futures
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from flax.core import meta

from unitoken_jax.checkpoint.param_store import SMALL_BYTES, StoredParams, naming_damage
from unitoken_jax.config import ModelConfig, from_dict, to_dict
from unitoken_jax.model import sharding
from unitoken_jax.model.decoder import stack_layers
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.quantize import QUANTIZED_KERNELS, QuantizedKernel, bits_of, quantize_layer
from unitoken_jax.sequence.layout import validate_config
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage import atomic
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import absolute, as_path, is_remote, literal_path

FORMAT = 2  # of the directory: 1 had other config keys (`config.RENAMED_KEYS`)
QUANTIZED_FORMAT = 3  # of a quantized one, which what reads format 2 alone would find damaged
# What reads an older format: no release exists, so the last revision of this repository that did.
_LAST_READERS = {1: "unitoken_jax 0.1.0 up to git revision d905683"}
CONFIG, TOKENIZER, PARAMS, MANIFEST = "config.json", "tokenizer.json", "params", "manifest.json"
UNFINISHED = "unfinished"  # an object at a URL whose parameters are being written
# Of a quantized model: computed with once an image, or looked up by row.
_NOT_READ_WHOLE = ("siglip/", "adapter/", "decoder/embed/")
# Orbax asks whether it is there, and writes the path on the writing machine into it, which is nobody else's.
ORBAX_MARKER = "commit_success.txt"
NETWORK = ("siglip", "adapter", "decoder")  # what UniTokenModel reads; the VQ-GAN stands apart
# What a directory may lack as a whole: published checkpoints carry no VQ-GAN, or its encoder alone.
OPTIONAL = ("vqgan", "vqgan/encoder", "vqgan/quant_conv", "vqgan/decoder", "vqgan/post_quant_conv")
_VERSIONS = (
    "unitoken_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "numpy",
)


class LoadedModel(NamedTuple):
    """A model directory's content; `params` as in the module's docstring, or (`open_model`) StoredParams."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    manifest: dict


def save_model(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Mapping,
    tokenizer: Tokenizer,
    manifest: Mapping | None = None,
) -> None:
    """Writes the model directory `path`: complete, or not at all.

    An older model directory there is replaced when the new one is complete; at a URL, where nothing can be
    renamed, it is gone as soon as writing begins. Every process of a multi-host run calls this with the same
    arguments.

    Args:
      params: the parameters; the decoder's layers may be apart, as a `Runtime` holds them, and are stored
        stacked.
      manifest: what manifest.json says besides (`sources`, `licences`, ...).
    Raises FileExistsError where `path` is something else than a model directory, ValueError listing every
    parameter that does not fit `config`, or where kernels are quantized.
    """
    import orbax.checkpoint as ocp

    path = absolute(path)
    params = meta.unbox(dict(params))
    if any(isinstance(leaf, QuantizedKernel) for leaf in _flat(params).values()):
        raise ValueError(
            f"the parameters for {path} are quantized: `unitoken quantize` writes such a directory"
        )
    if "0" in params.get("decoder", {}).get("layers", {}):
        params = {**params, "decoder": stack_layers(params["decoder"])}
    _check_params(config, params, f"the parameters for {path}")
    check_destination(path)
    staged = staging_path(path)
    main = jax.process_index() == 0
    if main and is_remote(path):
        write_text(staged / UNFINISHED, "")  # says that what is here may go, in place of the manifest
        (staged / MANIFEST).unlink(missing_ok=True)
    elif main:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
    _wait("save_model: directory made")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(literal_path(staged) / PARAMS, params, save_args=_save_args(params), force=True)
    if main:
        finalize(path, config, tokenizer, manifest)
    _wait("save_model: done")


def _save_args(params: Mapping) -> dict:
    """Large stacked arrays in chunks of one layer, so that a layer can be read alone (`open_model`)."""
    import orbax.checkpoint as ocp

    flat = _flat(params)
    large = {path for path, leaf in flat.items() if "/layers/" in path and leaf.nbytes > SMALL_BYTES}
    args = {path: ocp.SaveArgs(shard_axes=(0,) if path in large else ()) for path in flat}
    return traverse_util.unflatten_dict(args, sep="/")


def staging_path(path: str | os.PathLike) -> pathlib.Path:
    """Where a model directory grows before it becomes `path`; at a URL, that is `path`."""
    path = absolute(path)
    return path if is_remote(path) else atomic.staging_path(path)


def finalize(
    path: str | os.PathLike, config: ModelConfig, tokenizer: Tokenizer, manifest: Mapping | None = None
) -> None:
    """Makes the model directory `path` of `staging_path(path)`, which holds the parameters already."""
    path = absolute(path)
    staged = staging_path(path)
    marker = staged / PARAMS / ORBAX_MARKER
    if marker.exists():
        write_text(marker, "complete\n")
    _write_json(staged / CONFIG, to_dict(config))
    tokenizer.save(staged / TOKENIZER)
    header = manifest_header(FORMAT) | {"sources": {}, "licences": []}
    _write_json(staged / MANIFEST, header | dict(manifest or {}))  # last: a URL becomes one with it
    if staged == path:
        (path / UNFINISHED).unlink()
        return
    atomic.replace_folder(staged, path)


def check_destination(path: str | os.PathLike) -> None:
    """Raises FileExistsError where `path` is neither free, nor empty, nor a model directory to replace."""
    path = as_path(path)
    free = not path.exists() or is_model_dir(path) or (path / UNFINISHED).exists()
    if not free and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is no model directory: choose another place, or remove it")


def load_settings(path: str | os.PathLike) -> tuple[ModelConfig, Tokenizer, dict]:
    """(config, tokenizer, manifest) of the model directory `path`, without its parameters. Raises as
    `load_model`."""
    path = absolute(path)
    _check_directory(path)
    values, manifest = read_object(path / CONFIG), read_object(path / MANIFEST)
    # Before the keys, which an older format names otherwise.
    _check_format(path, manifest.get("format", FORMAT))
    tokenizer = Tokenizer.load(path / TOKENIZER)
    try:
        config = from_dict(ModelConfig, values)
        validate_config(config, tokenizer.vocabulary)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error
    return config, tokenizer, manifest


def read_object(path: pathlib.Path) -> dict:
    """The JSON object in a file. Raises ValueError naming the file where it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, not UTF-8, or nested without end
        raise ValueError(f"{path} is not valid JSON ({error}): it is damaged") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object: it is damaged")
    return values


def _check_format(path: pathlib.Path, number: Any) -> None:
    """Raises ValueError that says what to do where the model directory `path` is not of format FORMAT."""
    if not isinstance(number, int):
        raise ValueError(f"{path / MANIFEST}: format is {number!r}; expected a number: the file is damaged")
    if number in (FORMAT, QUANTIZED_FORMAT):
        return
    problem = (
        f"{path} is a model directory of format {number}; this version of unitoken_jax reads {FORMAT} and "
        f"{QUANTIZED_FORMAT}"
    )
    if number in _LAST_READERS:
        reader = _LAST_READERS[number]
        raise ValueError(f"{problem}: convert its weights or train again. What reads it is {reader}")
    raise ValueError(f"{problem}: update unitoken_jax")


def open_model(path: str | os.PathLike) -> LoadedModel:
    """The model directory `path`, checked as by `load_model`; `params` are StoredParams, not read yet."""
    path = absolute(path)
    config, tokenizer, manifest = load_settings(path)
    stored = StoredParams(literal_path(path) / PARAMS)
    try:
        abstract_params(config)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error
    _check_params(config, stored.tree, str(path / PARAMS))
    return LoadedModel(config, stored, tokenizer, manifest)


def open_unquantized(path: str | os.PathLike, purpose: str) -> LoadedModel:
    """`open_model(path)` for a `purpose` ("training") that needs kernels as they were made: ValueError where
    they are quantized."""
    opened = open_model(path)
    if opened.params.quantization is not None:
        original = opened.manifest.get("quantized_from", "its name is not known")
        raise ValueError(
            f"{path} holds its decoder in {opened.params.quantization}, from which nothing leads back: for "
            f"{purpose}, name the model directory that it was made of ({original})"
        )
    return opened


def load_model(
    path: str | os.PathLike,
    *,
    mesh=None,
    dtype: Any = None,
    quantize: str | None = None,
    unstacked: bool = False,
) -> LoadedModel:
    """Reads the model directory `path`, every parameter's path and shape checked against its config.

    `mesh` (`sharding.make_mesh`) spreads the parameters over devices; `dtype` casts all but the VQ-GAN's
    (None keeps what is stored), which become float32; `quantize` "int8" or "int4" reads the decoder's
    kernels layer by layer into so many bits, which a quantized directory has them in already. The decoder's
    layers of a quantized model stand apart, as `unstack_layers` gives them, and its manifest says
    "quantization". `unstacked`: so do those of any model, without a mesh; no stack of them is ever held.
    Raises FileNotFoundError, or ValueError listing every problem.
    """
    opened = open_model(path)
    targets = _targets(opened.config, opened.params.tree, mesh, dtype)
    stored = opened.params.quantization
    if quantization := quantize or stored:
        bits = bits_of(quantization)
        if stored not in (None, quantization):
            raise ValueError(
                f"{path} holds its decoder in {stored}, not in {quantization}: quantize the model directory "
                "that it was made of, or leave the setting out"
            )
        params = _read_unstacked(opened.params, targets, bits)
        return opened._replace(params=params, manifest=opened.manifest | {"quantization": quantization})
    if unstacked and mesh is None:
        return opened._replace(params=_read_unstacked(opened.params, targets))
    import orbax.checkpoint as ocp  # takes a quarter of a second

    checkpoint = literal_path(absolute(path)) / PARAMS
    with naming_damage(checkpoint), ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(checkpoint, targets)
    return opened._replace(params=params)


def _read_unstacked(stored: StoredParams, targets: dict, bits: int | None = None) -> dict:
    """All parameters as `targets` says, but the decoder's layers apart, and QUANTIZED_KERNELS in `bits` bits
    (None: as the others).

    Each layer is read into the array that decoding uses, so that no stack is held; a thread a core, each with
    one layer's floats at most. What a pass of a quantized model does not read whole stays as small as it is
    stored.
    """

    def read(path: str, layer: int | None) -> tuple[str, Any]:
        target = flat[path]
        value, placement = stored.read(path, layer), target.sharding
        if layer is not None:
            path = path.replace("/layers/", f"/layers/{layer}/")
            placement = _respecified(placement, lambda names: names[1:])
        if bits is None:
            return path, _place(value.astype(target.dtype, copy=False), placement)
        if QUANTIZED_KERNELS.match(path):
            scales = _respecified(placement, lambda names: (None, names[1]))
            value = value if isinstance(value, QuantizedKernel) else quantize_layer(value, bits)
            return path, QuantizedKernel(_place(value.values, placement), _place(value.scales, scales))
        narrow = path.startswith(_NOT_READ_WHOLE) and value.dtype.itemsize < target.dtype.itemsize
        return path, _place(value if narrow else value.astype(target.dtype, copy=False), placement)

    flat = _flat(targets)
    pieces = [
        (path, layer)
        for path, target in flat.items()
        for layer in (range(target.shape[0]) if path.startswith("decoder/layers/") else (None,))
    ]
    # Whole arrays first: the largest is held three times while it is cast, when nothing else is there yet.
    pieces.sort(key=lambda piece: piece[1] is not None)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return traverse_util.unflatten_dict(dict(pool.map(read, *zip(*pieces))), sep="/")


def _place(value: Any, placement: jax.sharding.Sharding) -> jax.Array:
    """`value` on the devices, without the waiting for other processes that `device_put` to a mesh does."""
    if isinstance(placement, jax.sharding.SingleDeviceSharding):
        return jax.device_put(value, placement)
    return jax.make_array_from_callback(value.shape, placement, lambda index: value[index])


def _respecified(placement: jax.sharding.Sharding, change: Callable[[tuple], tuple]) -> jax.sharding.Sharding:
    """`placement` with its axes' mesh axes as `change` gives them; on a single device the same."""
    if not isinstance(placement, jax.sharding.NamedSharding):
        return placement
    return placement.update(spec=jax.sharding.PartitionSpec(*change(tuple(placement.spec))))


def is_model_dir(path: str | os.PathLike) -> bool:
    """Whether `path` is a model directory (complete: they never exist half-written)."""
    path = as_path(path)
    return all((path / name).exists() for name in (CONFIG, TOKENIZER, PARAMS, MANIFEST))


def _check_directory(path: pathlib.Path) -> None:
    """Raises FileNotFoundError that says what is missing where `path` is no model directory."""
    if not path.is_dir():
        old = atomic.backup_path(path)
        hint = f" (a save was cut short: {old} is the one before it, rename it)" if is_model_dir(old) else ""
        raise FileNotFoundError(f"no model directory at {path}{hint}")
    missing = [name for name in (CONFIG, TOKENIZER, PARAMS, MANIFEST) if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(f"{path} is no model directory: it lacks {', '.join(missing)}")


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on, as far as they are installed."""
    installed = {}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def manifest_header(format: int) -> dict:
    """What the settings of any folder that is written here begin with: its format, when it was made, and with
    which versions."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"format": format, "created": created, "versions": versions()}


def _write_json(path: pathlib.Path, values: Mapping) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def _wait(barrier: str) -> None:
    """Waits until every process of a multi-host run is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(barrier)


def _flat(tree) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def _check_params(config: ModelConfig, params: Mapping, source: str) -> None:
    """Raises ValueError listing every missing, surplus or misshapen parameter of `params`."""
    expected, stored = _flat(meta.unbox(abstract_params(config))), _flat(params)
    may_lack = OPTIONAL + (("siglip", "adapter") if config.sequence.encoding == "discrete" else ())
    absent = [group + "/" for group in may_lack if not any(name.startswith(group + "/") for name in stored)]
    problems = []
    for name, leaf in expected.items():
        if name not in stored:
            if not name.startswith(tuple(absent)):
                problems.append(f"missing: {name} {leaf.shape}")
        elif tuple(stored[name].shape) != tuple(leaf.shape):
            problems.append(
                f"shape: {name} is {tuple(stored[name].shape)}, the config says {tuple(leaf.shape)}"
            )
    problems += [f"surplus: {name} {tuple(stored[name].shape)}" for name in stored if name not in expected]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"{source} does not fit its config, {len(problems)} problems:\n  {lines}")


def _targets(config: ModelConfig, stored: Mapping, mesh, dtype) -> dict:
    """What to restore: the stored shapes with dtype and placement."""
    boxed = abstract_params(config)
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = dict.fromkeys(_flat(meta.unbox(boxed)), device)
    else:
        placed = _flat(sharding.shardings(mesh, boxed))
    targets = {}
    for name, leaf in _flat(stored).items():
        cast = "float32" if name.startswith("vqgan/") else leaf.dtype if dtype is None else dtype
        targets[name] = jax.ShapeDtypeStruct(tuple(leaf.shape), cast, sharding=placed[name])
    return traverse_util.unflatten_dict(targets, sep="/")
