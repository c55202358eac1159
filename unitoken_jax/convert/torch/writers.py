"""Tensors by torch name -> safetensors files, sharded with an index as published checkpoints are."""

import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from unitoken_jax.convert.torch.report import Tensor

_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint8): "U8",
}
SHARD_BYTES = 5 * 10**9


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray | Tensor]) -> None:
    """One safetensors file; each Tensor is read when its turn comes, so that one is in memory at a time.

    Its header ends at a multiple of 8 bytes, as readers that map it want.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in tensors.items():
        end = offset + _bytes(value)
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for value in tensors.values():
            array = value.read() if isinstance(value, Tensor) else value
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _bytes(value: np.ndarray | Tensor) -> int:
    return math.prod(value.shape) * value.dtype.itemsize


def write_sharded(
    folder: pathlib.Path,
    tensors: Iterable[tuple[str, np.ndarray | Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Shards of at most `shard_bytes` (or one tensor) and model.safetensors.index.json; the files' names."""
    shards: list[dict[str, np.ndarray | Tensor]] = [{}]
    total = size = 0
    for name, value in tensors:
        if shards[-1] and size + _bytes(value) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += _bytes(value)
        total += _bytes(value)
    names = [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    for name, shard in zip(names, shards):
        write_safetensors(folder / name, shard)
    table = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names
