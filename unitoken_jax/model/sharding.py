"""Mesh and the one table from logical axis names to mesh axes.

Model code names its axes (`shard(x, "batch", "seq", "act_embed")` on activations,
`with_logical_axes(init, "embed", "mlp")` on parameters); only this table says where they live.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unitoken_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")

# Logical name -> mesh axes. Activations split rows over data and fsdp; parameters split their
# embedding side over fsdp and their head, mlp or vocabulary side over tensor.
RULES: dict[str, tuple[str, ...] | str | None] = {
    "batch": ("data", "fsdp"),
    "crops": ("data", "fsdp", "tensor"),
    "seq": None,
    "act_embed": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "patches": None,
    "channels": None,
}


class LogicallyPartitioned(nn.Partitioned):
    """A parameter with the logical names of its axes, and the initializer it is made with.

    nn.Partitioned would take its names for mesh axes and constrain the array to them on unboxing, which
    fails under `jax.set_mesh` as ours are logical; here the layout is decided by `shardings` alone.
    """

    init: Callable | None = flax.struct.field(default=None, pytree_node=False)

    def unbox(self, apply_constraint=True):
        return self.value


def make_mesh(config: MeshConfig = MeshConfig(), devices=None) -> Mesh:
    """Mesh `data x fsdp x tensor` over `devices` (default: all). ValueError if the sizes do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not fit {len(devices)} "
            "devices: the product must equal their number (one axis may be -1: what is left)"
        )
    # jax.make_mesh would split an axis of a TPU slice on v5e alone, and refuse tensor 2 on a 4x4x4 of v5p. It
    # also defaults to Explicit axes, on which linen modules fail.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def data_parallel_size(mesh) -> int:
    """How many groups of devices hold rows of their own."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"] or ())


def spec(*names: str | None) -> PartitionSpec:
    """PartitionSpec of an array whose axes have these logical names (None: not split)."""
    unknown = [name for name in names if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"no logical axis is called {unknown[0]!r}; known: {', '.join(RULES)}")
    return PartitionSpec(*(RULES[name] if name is not None else None for name in names))


def partition_spec_for(names: tuple[str | None, ...], shape: tuple[int, ...], sizes) -> PartitionSpec:
    """`spec(*names)` for an array of this shape on a mesh with axis `sizes` (name -> devices).

    An axis is split over as many of its mesh axes, from the first on, as divide it: one row on eight devices
    stays whole, as does SigLIP's width of 1152 over 256. Raises ValueError where there are not as many names
    as axes.
    """
    if len(names) != len(shape):
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {shape}")

    def dividing(axes: tuple[str, ...] | str | None, size: int) -> tuple[str, ...] | str | None:
        if axes is None or isinstance(axes, str):
            return axes if axes and size % sizes.get(axes, 1) == 0 else None
        while axes and size % math.prod(sizes[axis] for axis in axes):
            axes = axes[:-1]
        return axes or None

    return PartitionSpec(*(dividing(axes, size) for axes, size in zip(spec(*names), shape)))


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains `x` to the table's layout under `jax.set_mesh`; the identity where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec_for(names, x.shape, mesh.shape))


def unshard_fsdp(x: jax.Array, *names: str | None) -> jax.Array:
    """`x`, a parameter, in one piece along the axes that only its storage splits (fsdp)."""
    return shard(x, *(None if name is not None and RULES[name] == "fsdp" else name for name in names))


def constrain_last_axis(x: jax.Array, name: str | None) -> jax.Array:
    """`x` with its last axis laid out as a parameter's axis `name`, the others as the compiler likes.

    For rows looked up in a table of split width: each device looks up its part of the width, and only what
    was found moves. Left alone, or with the rows' axes constrained too, whole tables, or every device's rows,
    are gathered (libtpu 0.0.52, data 2 x fsdp 128).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    last = partition_spec_for((name,), x.shape[-1:], mesh.shape)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free, *last))


def with_logical_axes(initializer: Callable, *names: str | None) -> Callable:
    """`initializer` whose parameter carries these logical axis names, boxed in `LogicallyPartitioned`.

    A scan over layers adds "layers" in front. `flax.linen.meta.unbox` takes the boxes off.
    """

    def boxed(*args, **kwargs) -> LogicallyPartitioned:
        return LogicallyPartitioned(initializer(*args, **kwargs), names, init=initializer)

    return boxed


def shardings(mesh: Mesh, boxed_tree):
    """NamedSharding of every parameter of a tree of boxes (`model.init.abstract_params`).

    The result has the structure of the *unboxed* tree, so it serves as jit's in_shardings or out_shardings.
    A leaf without a box is replicated.
    """

    def leaf_sharding(leaf) -> NamedSharding:
        names = leaf.names if isinstance(leaf, LogicallyPartitioned) else (None,) * leaf.ndim
        shape = leaf.value.shape if isinstance(leaf, LogicallyPartitioned) else leaf.shape
        return NamedSharding(mesh, partition_spec_for(names, shape, mesh.shape))

    return jax.tree.map(
        leaf_sharding, boxed_tree, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned)
    )


def fetch(array) -> np.ndarray:
    """A whole array from the devices as numpy's; where it is spread over processes, all of them call this."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
