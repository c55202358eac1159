"""Does a KV cache fit into memory? Checked before minutes are spent, or the system ends the process."""

import functools
import math

import jax

from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.storage.host_memory import free_host_bytes

GIB = 2**30


def cache_bytes(model: Runtime, rows: int, slots: int) -> int:
    """Bytes of a KV cache of `rows` rows of `slots` tokens, on all devices together."""
    cache = jax.eval_shape(functools.partial(model.module.init_cache, rows, slots))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def free_bytes(model: Runtime) -> int | None:
    """Free bytes on the model's devices together, the machine's where that is a CPU; None: not known."""
    devices = jax.local_devices()[:1] if model.mesh is None else model.mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if all(device_stats and "bytes_limit" in device_stats for device_stats in stats):
        return sum(device_stats["bytes_limit"] - device_stats["bytes_in_use"] for device_stats in stats)
    return free_host_bytes() if devices[0].platform == "cpu" else None


def check_memory(model: Runtime, rows: int, slots: int, length: int) -> None:
    """Raises ValueError with the figures where a cache of `rows` rows, `length` of whose `slots` tokens are
    the prompt's, is larger than what is free."""
    needed, free = cache_bytes(model, rows, slots), free_bytes(model)
    if free is not None and needed > free:
        raise ValueError(
            f"a cache of {rows} rows of {slots} tokens (prompts up to {length}, {slots - length} to write) "
            f"takes {needed / GIB:.2f} GiB ({needed} bytes), but {free / GIB:.2f} GiB are free: write "
            "fewer at one time (batch) or less (max_tokens, a smaller image), or shorten the conversation"
        )
