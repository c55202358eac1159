"""Mesh, logical axes and boxes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers.networks import MODEL
from unitoken_jax.config import MeshConfig, ModelConfig
from unitoken_jax.model import sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.sharding import LogicallyPartitioned

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


def test_mesh_takes_what_is_left():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    assert mesh.axis_names == sharding.AXES
    assert mesh.shape["fsdp"] == len(jax.devices())


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3, fsdp=-1), MeshConfig(fsdp=2), MeshConfig(data=-1, fsdp=-1), MeshConfig(fsdp=0)],
    ids=["indivisible", "too many", "two unknown", "zero"],
)
def test_mesh_that_does_not_fit(config):
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        sharding.make_mesh(config, jax.devices()[:1])


def test_spec():
    assert sharding.spec("batch", None, "heads") == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(ValueError, match="no logical axis is called 'head'; known: batch"):
        sharding.spec("batch", "head")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 4, 6), P(("data", "fsdp"), None, "tensor")),
        ((4, 4, 6), P("data", None, "tensor")),  # 4 rows on 2 x 4 devices
        ((3, 4, 6), P(None, None, "tensor")),
        ((16, 4, 3), P(("data", "fsdp"), None, None)),
    ],
)
def test_axes_that_do_not_divide_stay_whole(shape, expected):
    assert sharding.partition_spec_for(("batch", "seq", "heads"), shape, SIZES) == expected


def test_a_name_for_every_axis():
    with pytest.raises(ValueError, match=r"2 axis names .* for an array of shape \(2, 3, 4\)"):
        sharding.partition_spec_for(("batch", "seq"), (2, 3, 4), SIZES)


def test_shard_is_the_identity_without_a_mesh_and_a_constraint_with_one():
    f = lambda x: sharding.shard(x, "batch", "act_embed")  # noqa: E731
    x = jnp.ones((2, 3))
    assert "sharding_constraint" not in str(jax.make_jaxpr(f)(x))
    with jax.set_mesh(sharding.make_mesh()):
        assert "sharding_constraint" in str(jax.make_jaxpr(f)(x))


def test_every_parameter_is_named_and_layers_come_first():
    abstract = abstract_params(MODEL)
    boxes = jax.tree.leaves(abstract, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned))
    assert all(isinstance(box, LogicallyPartitioned) and len(box.names) == box.value.ndim for box in boxes)
    q = abstract["decoder"]["layers"]["attention"]["q"]["kernel"]
    assert q.names == ("layers", "embed", "heads")
    assert abstract["siglip"]["layers"]["mlp_norm"]["scale"].names == ("layers", "act_embed")
    layers = [box for box in boxes if box.names[0] == "layers"]
    assert {box.value.shape[0] for box in layers} == {2}


def test_big_kernels_are_split_on_both_sides():
    """No kernel of a decoder or SigLIP layer is left whole on any mesh axis it could use."""
    abstract = abstract_params(ModelConfig())
    for tower in ("decoder", "siglip"):
        for box in jax.tree.leaves(
            abstract[tower], is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned)
        ):
            spec = sharding.partition_spec_for(box.names, box.value.shape, SIZES)
            if box.value.ndim == 3 and np.prod(box.value.shape) > 1e6:
                assert {axis for axis in spec if axis} == {"fsdp", "tensor"}, box


def test_boxes_survive_init_under_a_mesh():
    """nn.Partitioned itself would fail here: its names would be looked up among the mesh's axes."""
    with jax.set_mesh(sharding.make_mesh()):
        init = sharding.with_logical_axes(nn.initializers.ones, "embed", "mlp")

        class One(nn.Module):
            @nn.compact
            def __call__(self, x):
                return x @ self.param("kernel", init, (4, 4))

        params = One().init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert params["kernel"].names == ("embed", "mlp")
    assert sharding.shardings(sharding.make_mesh(), params)["kernel"].spec == P("fsdp", "tensor")
