"""`python other_mesh.py WORKDIR DATA FSDP TENSOR`: a state on this mesh, restored if it is there, and saved.

Its values are known, so that each process can compare the parts that it holds, bit by bit.
"""

import sys

import jax
import numpy as np

from tests.helpers.tiny_model import CONFIG as MODEL
from tests.helpers.tiny_model import tiny_params
from unitoken_jax.cli import distributed
from unitoken_jax.config import Config, MeshConfig, OptimizerConfig, ParameterGroup
from unitoken_jax.model import sharding
from unitoken_jax.train import state
from unitoken_jax.train.checkpoint import Checkpoints
from unitoken_jax.train.optimizer import peak_rates
from unitoken_jax.train.placement import abstract_state

CONFIG = Config(model=MODEL, optimizer=OptimizerConfig(groups=(ParameterGroup("adapter|decoder", 1e-3),)))
ROW = 40


def known(i: int, leaf) -> np.ndarray:
    """The value of the state's i-th array."""
    return np.random.default_rng(i).integers(-100, 100, leaf.shape).astype(leaf.dtype) / leaf.dtype.type(7)


def main(workdir: str, *sizes: str) -> None:
    distributed.start()
    mesh = sharding.make_mesh(MeshConfig(*map(int, sizes)))
    rates = peak_rates(state.flatten(tiny_params()), CONFIG.optimizer.groups)
    with jax.set_mesh(mesh), Checkpoints(workdir, 1) as checkpoints:
        abstract = abstract_state(CONFIG, state.flatten(tiny_params()), rates, mesh)
        leaves, structure = jax.tree.flatten(abstract)
        values = [np.asarray(known(i, leaf), leaf.dtype) for i, leaf in enumerate(leaves)]
        values[0] = np.int32(0 if checkpoints.latest() is None else checkpoints.latest())
        if checkpoints.latest() is not None:
            found, row = checkpoints.restore(abstract)
            assert row == ROW
            for leaf, value, wanted in zip(jax.tree.leaves(found), values, leaves):
                assert leaf.sharding == wanted.sharding
                for shard in leaf.addressable_shards:
                    np.testing.assert_array_equal(shard.data, value[shard.index])
        values[0] += 1
        arrays = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index, value=value: value[index])
            for leaf, value in zip(leaves, values)
        ]
        checkpoints.save(jax.tree.unflatten(structure, arrays), ROW, CONFIG)


if __name__ == "__main__":
    main(*sys.argv[1:])
