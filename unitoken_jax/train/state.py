"""What a training run carries from step to step. Parameters are flat dicts, path -> array.

Only trained parameters have moments, and only they are differentiated; the frozen ones ride along, so that
a checkpoint is complete by itself.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unitoken_jax.config import TrainConfig
from unitoken_jax.model.quantize import QuantizedKernel
from unitoken_jax.train import spike_guard
from unitoken_jax.train.spike_guard import SpikeGuard


@flax.struct.dataclass
class State:
    """`step` int32[]: steps done. `skipped` int32[]: how many of them the guard left out."""

    step: jax.Array
    skipped: jax.Array
    guard: SpikeGuard
    params: dict[str, jax.Array]  # trained, float32
    frozen: dict[str, jax.Array]  # in the dtype they came in
    opt_state: optax.OptState

    @property
    def tree(self) -> dict:
        """All parameters as the nested tree the model takes."""
        return merge(self.params, self.frozen)


def flatten(params: dict) -> dict[str, jax.Array]:
    """The leaves of a nested tree by path: {"decoder/lm_head/kernel": array}."""
    return flatten_dict(params, sep="/")


def merge(params: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> dict:
    """The nested tree of all parameters, from the flat dicts of trained and frozen ones."""
    return unflatten_dict({**params, **frozen}, sep="/")


def create(
    params: dict,
    rates: dict[str, float],
    optimizer: optax.GradientTransformation,
    spike_window: int = TrainConfig.spike_window,
) -> State:
    """The state at step 0 of nested `params`, of which those in `rates` (`optimizer.peak_rates`) train."""
    flat = flatten(params)
    # A copy, even under jit: the step donates trained parameters, and these may be the caller's.
    trained = {path: jnp.array(flat[path], jnp.float32, copy=True) for path in sorted(rates)}
    return State(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        guard=spike_guard.create(spike_window),
        params=trained,
        frozen={path: value for path, value in sorted(flat.items()) if path not in rates},
        opt_state=optimizer.init(trained),
    )


def state_shardings(abstract: State, parameter_shardings: dict, mesh: Mesh) -> State:
    """The NamedSharding of every array of `abstract` (a State under eval_shape).

    `parameter_shardings` is the nested tree of the parameters' own; moments lie where their parameter does,
    scalars and an optimizer's constants are on every device.
    """
    flat = flatten(parameter_shardings)
    parameters = {**abstract.params, **abstract.frozen}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def sharding_of(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if isinstance(leaf, QuantizedKernel):
            return leaf_sharding(leaf, flat[names[-1]])
        return flat[names[-1]] if leaf.ndim and names and names[-1] in parameters else everywhere

    return jax.tree_util.tree_map_with_path(
        sharding_of, abstract, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel)
    )


def leaf_sharding(leaf, layout: NamedSharding):
    """`layout`, or of a QuantizedKernel [..., in, out] that it was meant for, one of values and scales: a
    scale belongs to many inputs, so that only its outputs are split."""
    if not isinstance(leaf, QuantizedKernel):
        return layout
    *stack, _, outputs = layout.spec
    return QuantizedKernel(layout, layout.update(spec=PartitionSpec(*stack, None, outputs)))  # type: ignore[arg-type]
