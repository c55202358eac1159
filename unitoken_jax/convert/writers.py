"""Arrays by torch name -> safetensors files, sharded with an index as published checkpoints are."""

import json
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

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


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """One safetensors file. Its header ends at a multiple of 8 bytes, as readers that map it want."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [place, place + value.nbytes],
        }
        place += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for value in tensors.values():
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def write_sharded(
    folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Shards of at most `shard_bytes` (or one tensor) and model.safetensors.index.json; the files' names."""
    shard: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    holds: list[list[str]] = []

    def close() -> None:
        write_safetensors(folder / f"part-{len(holds)}", shard)
        holds.append(list(shard))
        shard.clear()

    for name, value in tensors:
        if shard and sum(each.nbytes for each in shard.values()) + value.nbytes > shard_bytes:
            close()
        shard[name] = value
        sizes[name] = value.nbytes
    if shard or not holds:
        close()
    names = [f"model-{k + 1:05d}-of-{len(holds):05d}.safetensors" for k in range(len(holds))]
    for k, name in enumerate(names):
        os.rename(folder / f"part-{k}", folder / name)
    table = {tensor: name for name, tensors in zip(names, holds) for tensor in tensors}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(table.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names
