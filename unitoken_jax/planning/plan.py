"""`unitoken plan`: compiles the actual train step for devices that need not be there, and says what it takes.

Nothing is allocated and nothing runs: state and batch are shapes, laid out as `train.loop` lays them out
(`placement`). What the compiler says about memory is exact for its version; times are estimates.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
import re
import tempfile
import time

import flax.linen as nn
import jax
from jax.sharding import Mesh

from unitoken_jax import batch as batches
from unitoken_jax.config import Config
from unitoken_jax.model import flops, sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.planning import hlo, topology
from unitoken_jax.planning.cost import Cost, cost
from unitoken_jax.sequence.vocabulary import Vocabulary, control_names
from unitoken_jax.train.optimizer import peak_rates
from unitoken_jax.train.placement import abstract_state, check_rows, row_sharding, shardings_of
from unitoken_jax.train.state import State, flatten
from unitoken_jax.train.step import make_model, make_train_step

LOCAL = "local"
# Share of a row's positions that are learnt, which only data can tell: a third is the most seen in stage II.
SUPERVISED = 1 / 3
# FLOPs a TPU does in a cycle, as the compiler counts cycles (a product of two 4096 x 4096 matrices).
_FLOPS_A_CYCLE = {"v5e": 4 * 128**2 * 2, "v5p": 8 * 128**2 * 2, "v6e": 4 * 256**2 * 2}
KERNEL_SHARE = 0.5  # of peak, that attention kernels reach
PRODUCT_SHARE = 0.7  # of peak, that matrix products reach where the compiler does not say


@dataclasses.dataclass
class Memory:
    """Bytes a device. `peak`, `temporaries` and `program` are the compiler's; `largest` of the temporaries.

    `whole`: of parameters and optimizer, what every device holds all of, as its sizes do not divide.
    """

    limit: float | None = None
    peak: float | None = None
    parameters: float = 0
    frozen: float = 0
    optimizer: float = 0
    batch: float = 0
    whole: float = 0
    temporaries: float | None = None
    program: float | None = None
    largest: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.peak is not None and (self.limit is None or self.peak <= self.limit)


@dataclasses.dataclass
class Time:
    """Seconds a step: what each resource needs at its published peak, and an estimate of the whole.

    `products` is the compiler's estimate of all but kernels and collectives, or FLOPs at a share of peak.
    """

    compute: float
    hbm: float
    interconnect: float
    products: float
    kernels: float
    exposed: float  # collectives that nothing else runs beside

    @property
    def limit(self) -> float:
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def estimate(self) -> float:
        return max(self.products + self.kernels + self.exposed, self.limit)


@dataclasses.dataclass
class Plan:
    """What `plan` finds. FLOPs are a device's share of a step; `error` is what the compiler refused with."""

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
    flops: dict[str, float]  # by formula
    cost: Cost | None = None
    kernel_flops: float = 0
    time: Time | None = None
    compile_seconds: float = 0
    error: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """A device."""
        return self.time and self.rows * self.row_length / self.devices / self.time.estimate

    def utilisation(self, seconds: float) -> float | None:
        """MFU of a step that takes so long."""
        peaks = flops.device(self.device)
        return peaks and sum(self.flops.values()) / peaks.flops / seconds

    def to_dict(self) -> dict:
        """For JSON: every field, and what follows from them."""
        found = dataclasses.asdict(self)
        found["fits"] = self.memory.fits
        if self.time:
            found["time"] |= {"limit": self.time.limit, "estimate": self.time.estimate}
            found["tokens_per_second_per_device"] = self.tokens_per_second
            found["mfu"] = self.utilisation(self.time.estimate)
            found["mfu_ceiling"] = self.utilisation(self.time.limit)
        return found


def devices_of(name: str) -> tuple[list, topology.Slice | None]:
    """The jax devices that `name` means: "local", or a TPU slice such as "v5e:16x16"."""
    if name == LOCAL:
        return jax.devices(), None
    part = topology.parse(name)
    return topology.devices(part), part


def plan(config: Config, name: str = LOCAL) -> Plan:
    """Compiles the step of `config` for topology `name`. ValueError for what cannot be; out of memory is a
    result."""
    devices, part = devices_of(name)
    mesh = sharding.make_mesh(config.mesh, devices)
    check_rows(config, mesh)
    kind = devices[0].device_kind
    peaks = flops.device(kind)
    state, batch, step, trained = _step(config, mesh)
    packages = ("jax", "libtpu") if part else ("jax",)
    found = Plan(
        topology=name,
        device=kind,
        devices=len(devices),
        mesh=dict(mesh.shape),
        rows=config.data.rows,
        row_length=config.data.row_length,
        row_crops=config.data.row_crops,
        row_images=config.data.row_images if config.data.codes == "online" else 0,
        remat=config.train.remat,
        trained=trained,
        memory=_arguments(state, batch),
        flops=_formula(config, trained, len(devices)),
        versions={package: importlib.metadata.version(package) for package in packages},
    )
    found.memory.limit = _memory_limit(devices[0], peaks, part)
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        options = hlo.dump_options(folder) if devices[0].platform == "tpu" else None
        before = time.perf_counter()
        try:
            compiled = step.lower(state, batch).compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found.error = str(error).splitlines()[0]
            _refused(found.memory, found.error)
            return found
        found.compile_seconds = time.perf_counter() - before
        _allocated(found.memory, compiled.memory_analysis(), folder)
        found.cost = cost(hlo.dumped_text(compiled, folder), len(devices), _loss_trips(config, mesh))
    _estimate(found, config, peaks, part)
    return found


def _step(config: Config, mesh: Mesh) -> tuple[State, dict, object, list[str]]:
    """(state, batch, step, names of the networks that train), all abstract, laid out on `mesh`."""
    params = flatten(nn.meta.unbox(abstract_params(config.model)))
    rates = peak_rates(params, config.optimizer.groups)
    # What is frozen comes as it is stored: published weights are bfloat16, those of the VQ-GAN float32.
    params = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype if path.startswith("vqgan/") else config.train.dtype
        )
        for path, leaf in params.items()
    }
    state = abstract_state(config, params, rates, mesh)
    # Only how many codes there are shapes the program, not which ids they have.
    names = control_names(config.model.vq.codes)
    vocabulary = Vocabulary.from_names({name: i for i, name in enumerate(names)})
    step = make_train_step(
        make_model(config, rates, mesh.devices.flat[0].platform),
        config,
        rates,
        vocabulary,
        shardings_of(state),
    )
    data = config.data
    online = data.codes == "online" and data.row_images > 0
    images = (data.row_images, *config.model.sequence.image_size) if online else ()
    shapes = batches.shapes(
        data.rows, data.row_length, data.row_crops, config.model.siglip.image_size, images
    )
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
    return state, batch, step, sorted({path.split("/")[0] for path in rates})


def _arguments(state: State, batch: dict) -> Memory:
    def held(tree, whole: bool = False) -> float:
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated or not whole]
        shares = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
        return float(sum(math.prod(share) * leaf.dtype.itemsize for share, leaf in zip(shares, leaves)))

    return Memory(
        parameters=held(state.params),
        frozen=held(state.frozen),
        optimizer=held(state.opt_state),
        batch=held(batch),
        whole=held(state, whole=True),
    )


def _formula(config: Config, trained: list[str], devices: int) -> dict[str, float]:
    """FLOPs by part, a device's share: full rows, each one long example."""
    data = config.data
    images = data.row_images if data.codes == "online" else 0
    learnt = SUPERVISED * data.row_length
    row = flops.example(data.row_length, learnt, data.row_prefix, data.row_crops, images)
    return flops.training(config.model, row * (data.rows / devices), trained)


def _memory_limit(device, peaks: flops.Device | None, part) -> float | None:
    """What a program may use of a device's memory; None where nobody says (a CPU)."""
    if part is None and (stats := device.memory_stats()) and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return peaks.hbm if peaks else None


def _allocated(memory: Memory, analysis, folder: str) -> None:
    """Fills in what the compiler planned."""
    memory.peak = analysis.peak_memory_in_bytes
    memory.temporaries = analysis.temp_size_in_bytes
    memory.program = analysis.generated_code_size_in_bytes
    memory.largest = _largest(folder)


def _largest(folder: str, number: int = 8) -> list[tuple[float, str]]:
    """The largest temporaries as (bytes, shapes), from the compiler's report of its main memory."""
    found = []
    for report in pathlib.Path(folder).glob("*memory-usage-report.txt"):
        text = report.read_text(encoding="utf-8").split("Memory Space:")
        main = next((part for part in text if part.strip().startswith("default")), "")
        for line in main.splitlines():
            if row := re.match(
                r"\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([KMG]iB|B)[^;]*;[^;]*;[^;]*;\s*(.+)", line
            ):
                found.append((float(row[1]) * _UNITS[row[2][0]], row[3]))
    return sorted(found, key=lambda one: -one[0])[:number]


_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _refused(memory: Memory, message: str) -> None:
    """Fills in what the compiler says it would have needed, where it says so."""
    if found := re.search(r"temporaries \(([\d.]+)([KMGT])\)", message):
        memory.temporaries = float(found[1]) * _UNITS[found[2]]
        held = memory.parameters + memory.frozen + memory.optimizer + memory.batch
        memory.peak = held + memory.temporaries
    elif found := re.search(r"Used ([\d.]+)([KMGT])", message):
        memory.peak = float(found[1]) * _UNITS[found[2]]


def _loss_trips(config: Config, mesh: Mesh) -> int:
    """Trips of the loss's loop, the one loop whose length is data: chunks of a group's learnt positions."""
    groups = sharding.data_parallel_size(mesh) * config.train.accumulate
    positions = SUPERVISED * config.data.rows * config.data.row_length / groups
    return max(math.ceil(positions / config.train.loss_chunk), 1)


def _estimate(found: Plan, config: Config, peaks: flops.Device | None, part: topology.Slice | None) -> None:
    """Fills in `kernel_flops` and `time`."""
    counted = found.cost
    if counted.kernels:  # forward, forward again for the backward pass, backward
        forward = _formula(config, [], found.devices)["attention"]
        again = forward if config.train.remat == "full" else 0  # the other policies keep its output
        found.kernel_flops = found.flops["attention"] + again
    if peaks is None:
        return
    rates = [_link_rate(one.group, peaks, part) for one in counted.collectives]
    sent = sum(one.sent_bytes / rate for one, rate in zip(counted.collectives, rates))
    exposed = sum(one.exposed_bytes / rate for one, rate in zip(counted.collectives, rates))
    products = sum(counted.flops.values())
    compute = (products + found.kernel_flops) / peaks.flops
    if counted.cycles:
        products = sum(counted.cycles.values()) / (peaks.flops / _FLOPS_A_CYCLE[peaks.name])
    else:
        products = products / peaks.flops / PRODUCT_SHARE
    found.time = Time(
        compute=compute,
        hbm=counted.traffic / peaks.hbm_bandwidth,
        interconnect=sent,
        products=products,
        kernels=found.kernel_flops / peaks.flops / KERNEL_SHARE,
        exposed=exposed,
    )


def _link_rate(group: int, peaks: flops.Device, part: topology.Slice | None) -> float:
    """Bytes a second that a device sends in collectives of `group` devices.

    On a TPU, half of the slice and more use every axis, in both directions where all are closed; fewer use
    what they lie along, one way.
    """
    if part is None:
        return peaks.link * peaks.axes
    if 2 * group >= part.chips:
        return peaks.link * peaks.axes * (1 if all(part.wrap) else 0.5)
    return peaks.link / 2 * (1 if group <= max(part.sides) else peaks.axes)
