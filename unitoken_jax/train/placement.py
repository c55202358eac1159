"""Where a run's state and batches lie on a mesh.

It is the same for `train.loop`, which has them, and for `planning.plan`, which compiles the step without any.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding

from unitoken_jax.config import Config
from unitoken_jax.model import sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.train import state as states
from unitoken_jax.train.optimizer import is_constant, transformation


def check_rows(config: Config, mesh: Mesh) -> None:
    """ValueError unless the mesh splits the batch's rows evenly."""
    groups = sharding.data_parallel_size(mesh)
    if config.data.rows % (groups * config.train.accumulate):
        raise ValueError(
            f"data.rows is {config.data.rows}, and the mesh splits rows {groups} ways (data x fsdp), each in "
            f"{config.train.accumulate} parts (train.accumulate): make it a multiple of the product"
        )


def parameter_layout(config: Config, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each parameter of config.model and config.lora lies, by path; of a kernel that is quantized,
    where its values do."""
    return flatten_dict(sharding.shardings(mesh, abstract_params(config.model, config.lora)), sep="/")


def abstract_state(config: Config, params: dict, rates: dict[str, float], mesh: Mesh) -> states.State:
    """The state at step 0 of flat `params`, as ShapeDtypeStructs with shardings.

    `params` are arrays or ShapeDtypeStructs.
    """
    abstract = jax.eval_shape(_creator(config, rates), params)
    shardings = states.state_shardings(abstract, parameter_layout(config, mesh), mesh)

    def placed(leaf, leaf_sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)

    return jax.tree.map(placed, abstract, shardings)


def shardings_of(abstract):
    """The tree of NamedShardings of a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def initial_state(config: Config, params: dict, rates: dict[str, float], mesh: Mesh):
    """(the state at step 0 with every array where it belongs, the same as ShapeDtypeStructs).

    Raises ValueError for parameters that config.model does not have.
    """
    layout = parameter_layout(config, mesh)
    flat = states.flatten(meta.unbox(params))
    unknown = [path for path in flat if path not in layout]
    if unknown:
        raise ValueError(
            f"config.model has no parameters {', '.join(unknown[:8])}, which were given to start from"
        )
    flat = {
        path: jax.device_put(value, states.leaf_sharding(value, layout[path])) for path, value in flat.items()
    }
    abstract = abstract_state(config, flat, rates, mesh)
    create = jax.jit(_creator(config, rates), out_shardings=shardings_of(abstract))
    return create(flat), abstract


def _creator(config: Config, rates: dict[str, float]):
    """Flat parameters -> the state at step 0."""
    optimizer, window = transformation(config.optimizer), config.train.spike_window

    def create(flat: dict[str, Any]) -> states.State:
        state = states.create(states.merge(flat, {}), rates, optimizer, window)
        if config.train.frozen_dtype != "bfloat16":
            return state
        frozen = {
            path: value if is_constant(path) else value.astype("bfloat16")
            for path, value in state.frozen.items()
        }
        return dataclasses.replace(state, frozen=frozen)

    return create


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Where every field of a batch lies: rows split over the mesh."""
    return NamedSharding(mesh, sharding.spec("batch"))


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of a batch, of which each process gives its own rows."""
    rows = row_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}
