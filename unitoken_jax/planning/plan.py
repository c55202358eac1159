"""`unitoken plan`: compiles the actual train step for devices that need not be there, and says what it takes.

Nothing is allocated and nothing runs: state and batch are shapes, laid out as `train.loop` lays them out
(`placement`). What the compiler says about memory is exact for its version; times are estimates.
"""

import dataclasses
import importlib.metadata
import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from unitoken_jax import batch as batches
from unitoken_jax.config import Config
from unitoken_jax.model import flops, sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.quantize import BITS, QUANTIZED_KERNELS, abstract_kernel, bits_of
from unitoken_jax.planning import hlo, topology
from unitoken_jax.planning.cost import Cost, count_cost
from unitoken_jax.planning.estimate import Time, estimate_time
from unitoken_jax.planning.memory import Memory, argument_memory, memory_limit
from unitoken_jax.sequence.vocabulary import Vocabulary, control_names
from unitoken_jax.train.optimizer import is_constant, peak_rates
from unitoken_jax.train.placement import abstract_state, check_rows, row_sharding, shardings_of
from unitoken_jax.train.state import State, flatten
from unitoken_jax.train.step import make_model, make_train_step

# The topology that means this machine's own devices.
LOCAL = "local"
# Share of a row's positions that are learnt, which only data can tell: a third is the most seen in stage II.
SUPERVISED = 1 / 3


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler made of a step, on one device.

    `kernel_flops` are by formula, as XLA sees none in attention kernels; `time` is None for a device whose
    speed is not known; `compile_seconds` is what the compiler took.
    """

    cost: Cost
    kernel_flops: float
    time: Time | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes on a topology.

    Args:
        topology: "local", or a slice's name.
        device: jax's name of the kind of device.
        devices: how many of them there are.
        mesh: devices along each axis.
        rows: rows of a global batch.
        row_length: tokens in a row.
        row_crops: crops in a row.
        row_images: images in a row that are encoded in the step.
        remat: what a layer keeps for its backward pass (`TrainConfig.remat`).
        trained: names of the networks that train.
        memory: bytes of one device.
        flops: a device's FLOPs in a step by network, by formula.
        versions: of the packages that compiled.
        compiled: what the compiler made of the step; None where it refused it.
        error: what it refused the step with; empty where it did not.
    """

    topology: str
    device: str
    devices: int
    mesh: dict[str, int]
    rows: int
    row_length: int
    row_crops: int
    row_images: int
    remat: str
    trained: list[str]
    memory: Memory
    flops: dict[str, float]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    compiled: CompiledStep | None = None
    error: str = ""

    @property
    def time(self) -> Time | None:
        """The estimate of a step's time; None where it was refused, or the device's speed is not known."""
        return self.compiled.time if self.compiled else None

    def tokens_per_second(self, seconds: float) -> float:
        """Tokens a second and device, of a step that takes `seconds`."""
        return self.rows * self.row_length / self.devices / seconds

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation of a step that takes `seconds`; None where no peak is known."""
        peaks = flops.device(self.device)
        return sum(self.flops.values()) / peaks.flops / seconds if peaks else None

    def to_dict(self) -> dict:
        """For JSON: every field, and what follows from them."""
        values = dataclasses.asdict(self)
        del values["compiled"]
        step = dataclasses.asdict(self.compiled) if self.compiled else {}
        values["cost"], values["time"] = step.get("cost"), step.get("time")
        values["kernel_flops"] = step.get("kernel_flops", 0)
        values["compile_seconds"] = step.get("compile_seconds", 0)
        values["fits"] = self.memory.fits
        if self.time:
            values["time"] |= {"limit": self.time.limit, "estimate": self.time.estimate}
            values["tokens_per_second_per_device"] = self.tokens_per_second(self.time.estimate)
            values["mfu"] = self.mfu(self.time.estimate)
            values["mfu_ceiling"] = self.mfu(self.time.limit)
        return values


def plan(config: Config, topology_name: str = LOCAL, stored: Mapping[str, Any] | None = None) -> Plan:
    """Compiles the training step of `config` for a topology: "local", or a TPU slice such as "v5e:16x16".

    `stored` says, by path, in which dtype a model directory has its parameters (`StoredParams.shapes`); None:
    as published ones do. Raises ValueError for settings or a topology that cannot be. A step that needs too
    much memory is a result, whose `error` is the compiler's.
    """
    tpu_slice = None if topology_name == LOCAL else topology.parse(topology_name)
    devices = topology.devices(tpu_slice) if tpu_slice else jax.devices()
    mesh = sharding.make_mesh(config.mesh, devices)
    check_rows(config, mesh)
    peaks = flops.device(devices[0].device_kind)
    step = _abstract_step(config, mesh, stored or {})
    memory = argument_memory(step.state, step.batch, memory_limit(devices[0], peaks, tpu_slice is None))
    formula = _formula_flops(config, step.trained, len(devices))
    compiled, error = None, ""
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        options = hlo.dump_options(folder) if devices[0].platform == "tpu" else None
        start = time.perf_counter()
        try:
            program = step.function.lower(step.state, step.batch).compile(options)
        except jax.errors.JaxRuntimeError as failure:
            if "RESOURCE_EXHAUSTED" not in str(failure):
                raise
            error = str(failure).splitlines()[0]
            memory = memory.refused(error)
        else:
            seconds = time.perf_counter() - start
            memory = memory.compiled(program.memory_analysis(), folder)
            text = hlo.dumped_text(program, folder)
            cost = count_cost(text, len(devices), _loss_trips(config, mesh))
            kernel_flops = _kernel_flops(config, cost, formula, len(devices))
            estimate = estimate_time(cost, kernel_flops, peaks, tpu_slice) if peaks else None
            compiled = CompiledStep(cost, kernel_flops, estimate, seconds)
    return Plan(
        topology=topology_name,
        device=devices[0].device_kind,
        devices=len(devices),
        mesh=dict(mesh.shape),
        rows=config.data.rows,
        row_length=config.data.row_length,
        row_crops=config.data.row_crops,
        row_images=config.data.row_images if config.data.codes == "online" else 0,
        remat=config.train.remat,
        trained=step.trained,
        memory=memory,
        flops=formula,
        versions={
            name: importlib.metadata.version(name) for name in ("jax", "libtpu")[: 2 if tpu_slice else 1]
        },
        compiled=compiled,
        error=error,
    )


class _AbstractStep(NamedTuple):
    """A train step, its arguments as ShapeDtypeStructs with shardings, and the networks that train."""

    function: Any  # a jitted function
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]
    trained: list[str]


def _abstract_step(config: Config, mesh: Mesh, stored: Mapping[str, Any]) -> _AbstractStep:
    """The step that `train.loop` would run with `config` on `mesh`, with nothing allocated."""
    params: dict[str, Any] = flatten(nn.meta.unbox(abstract_params(config.model, config.lora)))
    rates = peak_rates(params, config.optimizer.groups)
    params = {
        path: _as_stored(path, leaf, config, path in rates, stored.get(path)) for path, leaf in params.items()
    }
    state = abstract_state(config, params, rates, mesh)
    # Only how many codes there are shapes the program, not which ids they have.
    names = control_names(config.model.vq.codes)
    vocabulary = Vocabulary.from_names({name: i for i, name in enumerate(names)})
    model = make_model(config, rates, mesh.devices.flat[0].platform)
    function = make_train_step(model, config, rates, vocabulary, shardings_of(state))
    trained = sorted(flops.trained_networks(rates))
    return _AbstractStep(function, state, _abstract_batch(config, mesh), trained)


def _as_stored(path: str, leaf: jax.ShapeDtypeStruct, config: Config, trained: bool, stored: Any) -> Any:
    """A parameter as it comes to the step. Published weights are bfloat16, those of the VQ-GAN float32;
    `stored`, where it is known, says better."""
    frozen_dtype = config.train.frozen_dtype
    if not trained and frozen_dtype in BITS and QUANTIZED_KERNELS.match(path):
        return abstract_kernel(leaf.shape, bits_of(frozen_dtype))
    if is_constant(path):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, stored.dtype if stored else config.train.dtype)


def _abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as `batch.py` says, with its rows split over the mesh."""
    data = config.data
    online = data.codes == "online" and data.row_images > 0
    images = (data.row_images, *config.model.sequence.image_size) if online else ()
    shapes = batches.shapes(
        data.rows, data.row_length, data.row_crops, config.model.siglip.image_size, images
    )
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }


def _formula_flops(config: Config, trained: list[str], devices: int) -> dict[str, float]:
    """A device's FLOPs in a step by network, where every row is one example that fills it."""
    data = config.data
    images = data.row_images if data.codes == "online" else 0
    supervised = SUPERVISED * data.row_length
    row = flops.example(data.row_length, supervised, data.row_prefix, data.row_crops, images)
    return flops.training(config.model, row * (data.rows / devices), trained)


def _kernel_flops(config: Config, cost: Cost, formula: dict[str, float], devices: int) -> float:
    """FLOPs of attention kernels: forward, forward again for the backward pass, backward."""
    if not cost.kernels:
        return 0
    forward = _formula_flops(config, [], devices)["attention"]
    recomputed = forward if config.train.remat == "full" else 0  # the other policies keep its output
    return formula["attention"] + recomputed


def _loss_trips(config: Config, mesh: Mesh) -> int:
    """Trips of the loss's loop, the one loop whose length is data: chunks of a group's learnt positions."""
    groups = sharding.data_parallel_size(mesh) * config.train.accumulate
    positions = SUPERVISED * config.data.rows * config.data.row_length / groups
    return max(math.ceil(positions / config.train.loss_chunk), 1)
