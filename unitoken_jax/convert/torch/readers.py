"""Checkpoint folders -> tensors by name: single or sharded, safetensors or torch zip files.

A safetensors file is 8 bytes (the header's length), a JSON header (name -> dtype, shape, byte range) and the
bytes. The header is checked against the file before anything is read: ranges touch, and end where the
file ends.
"""

import collections
import json
import math
import os
import pathlib
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from unitoken_jax.convert.torch.pickles import read_pickle
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector, Tensor, map_bytes

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_INDEX_SUFFIX = ".index.json"
# What names a folder's weights, the first that is there: the order of `transformers` (modeling_utils of 4.57,
# November 2025, and of 5), which reads a single file whatever else stands beside it, however old.
_NAMES = (
    *("model.safetensors", "model.safetensors" + _INDEX_SUFFIX),
    *("pytorch_model.bin", "pytorch_model.bin" + _INDEX_SUFFIX),
)
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")  # without an index
_ADAPTER = "adapter_config.json"


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object. Raises ConversionError naming the file: no JSON, no object, or a key twice."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist")
    return _json(path.read_bytes(), str(path))


def _json(data: bytes, location: str) -> dict:
    def unique(pairs):
        values = dict(pairs)
        if len(values) < len(pairs):
            [(key, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
            raise ConversionError(f"{location}: duplicate key {key!r}")
        return values

    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except ConversionError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{location} is not valid JSON ({error}): it is damaged") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{location} holds a {type(values).__name__}; expected a JSON object")
    return values


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped. Raises ConversionError naming file and tensor."""
    path = pathlib.Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ConversionError(f"{path} has {size} bytes: no safetensors file, or cut short")
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ConversionError(
                f"{path}: its header is said to have {length} bytes, the file has {size}: no "
                "safetensors file, or cut short"
            )
        header = _json(file.read(length), f"{path} (header)")
    header.pop("__metadata__", None)
    tensors, ranges = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        ranges.append((begin, end, name))
        first = 8 + length + begin

        def read(first=first, count=end - begin, dtype=dtype, shape=shape) -> np.ndarray:
            return map_bytes(path, first, count).view(dtype).reshape(shape)

        tensors[name] = Tensor(name, shape, dtype, str(path), read)
    offset = 0
    for begin, end, name in sorted(ranges):
        if begin != offset:
            raise ConversionError(f"{path}: {name} starts at byte {begin}, expected {offset}: it is damaged")
        offset = end
    if 8 + length + offset != size:
        raise ConversionError(
            f"{path} has {size} bytes, its header describes {8 + length + offset}: it is cut short or damaged"
        )
    return tensors


def _entry(path: pathlib.Path, name: str, entry) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a header's entry. Raises ConversionError where it makes no sense."""

    def whole_numbers(values) -> bool:
        return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

    if (
        not isinstance(entry, dict)
        or not whole_numbers(entry.get("shape"))
        or not whole_numbers(entry.get("data_offsets"))
    ):
        raise ConversionError(f"{path}: the header's entry for {name} is {entry!r}: it is damaged")
    if entry.get("dtype") not in _DTYPES or len(entry["data_offsets"]) != 2:
        raise ConversionError(
            f"{path}: {name} has dtype {entry.get('dtype')!r} and offsets {entry['data_offsets']}; "
            f"known dtypes: {', '.join(_DTYPES)}"
        )
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ConversionError(
            f"{path}: {name} of shape {shape}, {dtype}, has {end - begin} bytes; expected "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    return dtype, shape, begin, end


def read_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or torch zip by its ending."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def weight_files(
    folder: str | os.PathLike, report: ProblemCollector
) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The files that hold a checkpoint folder's weights, and its index's name -> file (empty without one).

    What stands beside them and is not read is a note of `report`. Shards that the index points to and that
    are not there are problems, and so is an adapter, which would change the weights.
    """
    folder = pathlib.Path(folder)
    if (folder / _ADAPTER).is_file():
        report.add("file", f"{folder / _ADAPTER} says that an adapter changes these weights: merge it first")
    present = [name for name in _NAMES if (folder / name).is_file()]
    shards = [path.name for pattern in _SHARDS for path in sorted(folder.glob(pattern))]
    table: dict[str, str] = {}
    if present and present[0].endswith(_INDEX_SUFFIX):
        files, table = _indexed(folder / present[0], report)
    elif present:
        files = [folder / present[0]]
    else:
        files = [folder / name for name in shards if name.endswith(pathlib.Path(shards[0]).suffix)]
    if not present and not files:
        raise ConversionError(
            f"{folder} has no weights; looked for model.safetensors, model-*.safetensors, pytorch_model.bin "
            "and pytorch_model-*.bin, with or without their index"
        )
    read = {*present[:1], *(path.name for path in files)}
    if beside := [name for name in (*present, *shards) if name not in read]:
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        chosen = (*present, *shards)[0]
        report.note(f"{folder}: read {chosen}, as `transformers` does, and not {beside[0]}{more}")
    return files, table


def _indexed(index: pathlib.Path, report: ProblemCollector) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The shards that the file `index` points to and that are there, and its table tensor -> shard."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise ConversionError(f"{index} has no table 'weight_map' of file names")
    files = []
    for name in sorted(set(table.values())):
        path = index.parent / name
        if pathlib.PurePath(name).name != name:
            report.add("file", f"{index} points outside its folder: {name!r}")
        elif not path.is_file():
            count = sum(file == name for file in table.values())
            report.add("file", f"{index} points to {name}, which is not there ({count} tensors)")
        else:
            files.append(path)
    return files, table


class Folder(NamedTuple):
    """A checkpoint folder's tensors, the files they are in, and all names, also those its index alone has."""

    tensors: dict[str, Tensor]
    files: list[pathlib.Path]
    names: frozenset[str]


def read_folder(folder: str | os.PathLike, report: ProblemCollector) -> Folder:
    """All tensors of a checkpoint folder.

    Problems go to `report`: unreadable shards, a name in two shards, an index that disagrees with the shards.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder")
    files, table = weight_files(folder, report)
    by_name: dict[str, Tensor] = {}
    read = set()
    for path in files:
        try:
            tensors = read_file(path)
        except ConversionError as error:
            report.add("file", str(error))
            continue
        read.add(path.name)
        for name, tensor in tensors.items():
            if name in by_name:
                report.add("duplicate", f"{name} is in {by_name[name].file} and in {path}")
            by_name[name] = tensor
            if table and name not in table:
                report.add("file", f"{name} is in {path}, but not in the index")
    for name, file in table.items():
        indexed = by_name.get(name)
        if file in read and (indexed is None or pathlib.Path(indexed.file).name != file):
            report.add("missing", f"{name}: the index says {file}, which does not hold it")
    return Folder(by_name, files, frozenset(by_name) | frozenset(table))
