"""TPU slices by name ("v5e:16x16"), described to the compiler as Google's machines are wired.

The compiler comes with libtpu and needs no TPU. What it is told about the wiring changes the program:
without `wrap`, it makes of the all-gathers on a 4x4x4 of v5p all-reduces (libtpu 0.0.52; chip_config_name and
chips_per_host_bounds made no difference there, with either wrap).
"""

import dataclasses
import importlib.util
import math
import os
import re

# libtpu looks for these when it starts. Here no TPU is wanted, so it need not ask a cloud what it runs on and
# complain of what is missing, and several plans may run at one time.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# Slices that exist (docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}). A v5p also comes as any AxBxC of multiples
# of 4; those are closed to a torus, as are sides of 16 on v5e and v6e.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x8")}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice.

    `chip` is a name of `flops.DEVICES`, `sides` the chips along each axis, `wrap` which axes are rings.
    """

    name: str
    chip: str
    sides: tuple[int, ...]
    wrap: tuple[bool, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)


def parse(name: str) -> Slice:
    """The slice called `name`, such as "v5e:16x16". ValueError, listing what there is, for another name."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip, shape = match.groups() if match else ("", "")
    sides = tuple(map(int, shape.split("x"))) if match else ()
    torus = chip == "v5p" and len(sides) == 3 and min(sides) > 0 and not any(side % 4 for side in sides)
    if shape not in SHAPES.get(chip, ()) and not torus:
        known = "; ".join(f"{chip}: {', '.join(shapes)}" for chip, shapes in SHAPES.items())
        raise ValueError(
            f"no TPU slice is called {name!r}. There are, as CHIP:SHAPE, {known} and other multiples of 4; "
            "'local' is the devices of this machine"
        )
    wrap = (torus,) * 3 if chip == "v5p" else tuple(side == 16 for side in sides)
    return Slice(name, chip, sides, wrap)


def devices(tpu_slice: Slice) -> list:
    """jax devices of the slice: to compile for, not to run on. ModuleNotFoundError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "planning for a TPU needs its compiler: pip install libtpu (no TPU is needed)"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=tpu_slice.name,
        chip_config_name="megacore" if tpu_slice.chip == "v5p" else "default",
        chips_per_host_bounds=(1, 1, 1) if tpu_slice.chips == 1 else (2, 2, 1),
        wrap=(*tpu_slice.wrap, False)[:3],  # always three axes
    ).devices
