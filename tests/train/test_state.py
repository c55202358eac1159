"""State: trained and frozen parameters, moments, shardings."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unitoken_jax.config import OptimizerConfig
from unitoken_jax.model.sharding import make_mesh
from unitoken_jax.train.optimizer import transformation
from unitoken_jax.train.state import create, flatten, merge, state_shardings

PARAMS = {
    "adapter": {"up": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}},
    "decoder": {"embed": {"embedding": jnp.ones((4, 2), jnp.bfloat16)}},
}
RATES = {"adapter/up/kernel": 1e-3}
OPTIMIZER = transformation(OptimizerConfig())


def test_only_trained_parameters_are_float32_and_have_moments():
    state = create(PARAMS, RATES, OPTIMIZER)
    assert set(state.params) == {"adapter/up/kernel"}
    assert state.params["adapter/up/kernel"].dtype == jnp.float32
    assert state.frozen["decoder/embed/embedding"].dtype == jnp.bfloat16
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert moments == [(2, 3), (2, 3)]


def test_tree_is_the_nested_whole():
    state = create(PARAMS, RATES, OPTIMIZER)
    assert jax.tree.structure(state.tree) == jax.tree.structure(PARAMS)
    assert flatten(state.tree).keys() == flatten(PARAMS).keys()
    assert jax.tree.structure(merge(flatten(PARAMS), {})) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("jit", [False, True])
def test_trained_parameters_are_copies_since_the_step_donates_them(jit):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    make = jax.jit(lambda tree: create(tree, RATES, OPTIMIZER)) if jit else create
    state = make(params) if jit else make(params, RATES, OPTIMIZER)
    state.params["adapter/up/kernel"].delete()
    assert params["adapter"]["up"]["kernel"].sum() == 6


def test_moments_lie_where_their_parameter_does():
    mesh = make_mesh(devices=jax.devices()[:1])
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    layout = jax.tree.map(lambda _: split, PARAMS)
    abstract = jax.eval_shape(lambda: create(PARAMS, RATES, OPTIMIZER))
    found = state_shardings(abstract, layout, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(abstract)
    parts = (tree.replace(guard=None) for tree in (abstract, found))  # the guard's windows are everywhere
    for leaf, where in zip(*map(jax.tree.leaves, parts)):
        assert where.spec == (PartitionSpec("fsdp") if leaf.ndim else PartitionSpec())
