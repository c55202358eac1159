"""An estimate of how long a step takes, from what its program does and its devices' published peaks."""

import dataclasses

from unitoken_jax.model import flops
from unitoken_jax.planning import topology
from unitoken_jax.planning.cost import Cost

# FLOPs a TPU does in a cycle, as the compiler counts cycles (a product of two 4096 x 4096 matrices).
_FLOPS_PER_CYCLE = {"v5e": 4 * 128**2 * 2, "v5p": 8 * 128**2 * 2, "v6e": 4 * 256**2 * 2}
# Share of its peak FLOP/s that a device reaches in attention kernels.
KERNEL_SHARE = 0.5
# Share of its peak FLOP/s that a device reaches in matrix products, where the compiler does not say.
PRODUCT_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds a step: what each resource needs at its published peak, and an estimate of the whole.

    `products` is the compiler's estimate of all but kernels and collectives, or FLOPs at a share of peak;
    `exposed` is of collectives that nothing else runs beside.
    """

    compute: float
    hbm: float
    interconnect: float
    products: float
    kernels: float
    exposed: float

    @property
    def limit(self) -> float:
        """What the busiest resource needs: no step can be faster."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def estimate(self) -> float:
        """The sum of what does not overlap, and at least `limit`."""
        return max(self.products + self.kernels + self.exposed, self.limit)


def estimate_time(
    cost: Cost, kernel_flops: float, peaks: flops.Device, tpu_slice: topology.Slice | None
) -> Time:
    """The time of a step on one device.

    `cost` is what XLA counts, `kernel_flops` what attention kernels do besides; `peaks` are the device's
    published speeds; `tpu_slice` says how the devices are wired, None where they are no TPU slice.
    """
    product_flops = sum(cost.flops.values())
    if cost.cycles:
        products = sum(cost.cycles.values()) / (peaks.flops / _FLOPS_PER_CYCLE[peaks.name])
    else:
        products = product_flops / peaks.flops / PRODUCT_SHARE
    return Time(
        compute=(product_flops + kernel_flops) / peaks.flops,
        hbm=cost.traffic / peaks.hbm_bandwidth,
        interconnect=sum(
            collective.sent_bytes / _link_rate(collective.group, peaks, tpu_slice)
            for collective in cost.collectives
        ),
        products=products,
        kernels=kernel_flops / peaks.flops / KERNEL_SHARE,
        exposed=sum(
            collective.exposed_bytes / _link_rate(collective.group, peaks, tpu_slice)
            for collective in cost.collectives
        ),
    )


def _link_rate(group: int, peaks: flops.Device, tpu_slice: topology.Slice | None) -> float:
    """Bytes a second that a device sends in collectives of `group` devices.

    On a TPU, half of the slice and more use every axis, in both directions where all are closed; fewer use
    what they lie along, one way.
    """
    if tpu_slice is None:
        return peaks.link * peaks.axes
    if 2 * group >= tpu_slice.chips:
        return peaks.link * peaks.axes * (1 if all(tpu_slice.wrap) else 0.5)
    return peaks.link / 2 * (1 if group <= max(tpu_slice.sides) else peaks.axes)
