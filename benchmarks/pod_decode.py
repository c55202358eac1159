"""What a pass of the 7B model's decoding reads on a TPU, by its compiler: bytes against the weights' own.

    python benchmarks/pod_decode.py                      # every case: one to four minutes each on two cores
    python benchmarks/pod_decode.py --only v6e-int8

Compiled is what draws a 512-px image with guidance, `generate.decode.decode_loop`; nothing runs, and no TPU
is needed, but libtpu is. Bytes are a chip's, from the compiled program's text; "held" is what the program
keeps beside its inputs: a hidden copy of the weights or of the cache would be there.
"""

import argparse
import dataclasses
import functools
import math
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from unitoken_jax.config import MeshConfig, ModelConfig
from unitoken_jax.generate import decode
from unitoken_jax.generate.sampling import sample_keys
from unitoken_jax.model import flops, sharding
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.quantize import BITS, GROUP, QUANTIZED_KERNELS, QuantizedKernel
from unitoken_jax.model.unitoken import UniTokenModel
from unitoken_jax.planning import hlo, topology
from unitoken_jax.planning.cost import count_cost

SIDE, PROMPT = 32, 64  # codes of a 512-px image's row, slots of the prompt
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Case:
    """`chips` of the slice share the weights (tensor parallel); `window` tokens a pass, `rows` images."""

    topology: str
    chips: int = 1
    weights: str = "bfloat16"
    rows: int = 1
    window: int = 1


# A chip of v5e holds no 14 GB beside its program.
CASES = {
    "v5e-tp8": Case("v5e:2x4", 8),
    "v5e-int8": Case("v5e:1x1", weights="int8"),
    "v5p": Case("v5p:2x2x1"),
    "v5p-int8": Case("v5p:2x2x1", weights="int8"),
    "v6e": Case("v6e:1x1"),
    "v6e-int8": Case("v6e:1x1", weights="int8"),
    "v6e-window16": Case("v6e:1x1", window=16),
}


def abstract_weights(config: ModelConfig, weights: str, mesh) -> dict:
    """The decoder's parameters as shapes with their placement, as `Runtime.params` has them."""
    boxed = {"decoder": abstract_params(config)["decoder"]}
    placed = traverse_util.flatten_dict(sharding.shardings(mesh, boxed), sep="/")
    found = {}
    for path, leaf in traverse_util.flatten_dict(meta.unbox(boxed), sep="/").items():
        leaf_sharding = placed[path]
        if not path.startswith("decoder/layers/"):
            found[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf_sharding)
            continue
        leaf_sharding = leaf_sharding.update(spec=PartitionSpec(*leaf_sharding.spec[1:]))
        layer = jax.ShapeDtypeStruct(leaf.shape[1:], jnp.bfloat16, sharding=leaf_sharding)
        if weights in BITS and QUANTIZED_KERNELS.match(path):
            layer = _quantized(layer, weights)
        for i in range(config.decoder.depth):
            found[path.replace("layers/", f"layers/{i}/")] = layer
    return traverse_util.unflatten_dict(found, sep="/")


def _quantized(kernel: jax.ShapeDtypeStruct, weights: str) -> QuantizedKernel:
    inputs, outputs = kernel.shape
    groups = inputs // GROUP if weights == "int4" else 1
    scales = kernel.sharding.update(spec=PartitionSpec(None, kernel.sharding.spec[1]))
    return QuantizedKernel(
        jax.ShapeDtypeStruct(kernel.shape, jnp.dtype(weights), sharding=kernel.sharding),
        jax.ShapeDtypeStruct((groups, outputs), jnp.float32, sharding=scales),
    )


def abstract_cache(module: UniTokenModel, rows: int, slots: int, mesh):
    """The cache as shapes with their placement."""

    def placed(leaf):
        names = ("batch", "kv_heads", "seq", "head_dim")[: leaf.ndim]
        leaf_sharding = NamedSharding(mesh, sharding.partition_spec_for(names, leaf.shape, mesh.shape))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)

    return jax.tree.map(placed, jax.eval_shape(functools.partial(module.init_cache, rows, slots)))


def measure(case: Case, config: ModelConfig = ModelConfig()) -> dict:
    """Compiles a case's program; its figures, bytes a chip."""
    devices = topology.devices(topology.parse(case.topology))[: case.chips]
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=case.chips), devices)
    whole = NamedSharding(mesh, PartitionSpec())

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)

    cache_dtype = jnp.int8 if case.weights in BITS else jnp.bfloat16
    module = UniTokenModel(config, dtype=jnp.bfloat16, cache_dtype=jnp.dtype(cache_dtype))
    params = abstract_weights(config, case.weights, mesh)
    written, rows = SIDE * (SIDE + 1), case.rows
    cache = abstract_cache(module, 2 * rows, PROMPT + written, mesh)
    keys = jax.eval_shape(lambda: sample_keys(0, np.arange(rows)))
    tokens = shape(rows, written + 2 * case.window)
    state = decode.DecodeState(
        cache, shape(2 * rows), shape(rows, dtype=keys.dtype), tokens, shape(rows), shape(rows)
    )
    number = shape(dtype=jnp.float32)
    sampling = decode.SamplingParams(
        shape(), number, number, shape(written), shape(config.vq.codes), shape(0), shape()
    )
    before = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        lowered = decode.decode_loop.lower(
            module,
            params,
            state,
            sampling,
            shape(),
            shape(),
            spec=decode.DecodeSpec(case.window, guided=True),
        )
        compiled = lowered.compile(hlo.dump_options(folder))
        text = hlo.dumped_text(compiled, folder)
    # Loops whose length is data: passes of the window, and without one, also those that a forced id joins and
    # the loop around both.
    bodies = [name for name, trips in hlo.parse(text).loops.items() if trips == 0]
    costs = (count_cost(text, case.chips, start=name) for name in bodies)
    step_cost = min(costs, key=lambda cost: cost.traffic)
    memory = compiled.memory_analysis()
    layers = params["decoder"]["layers"]
    head = config.vq.codes * config.decoder.width * 2 / case.chips
    return {
        "weights": local_bytes(layers) + head,
        "cache": local_bytes(cache),
        "read": step_cost.traffic,
        "sent": sum(collective.sent_bytes for collective in step_cost.collectives),
        "arguments": memory.argument_size_in_bytes,
        "held": memory.temp_size_in_bytes,
        "bandwidth": flops.device(topology.parse(case.topology).chip).hbm_bandwidth,
        "seconds": time.perf_counter() - before,
    }


def local_bytes(tree) -> float:
    """Bytes of a tree of placed shapes on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape))
        * (0.5 if leaf.dtype == "int4" else leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )


COLUMNS = ("case", "weights read, GB", "cache, GB", "a pass reads and writes, GB", "of both", "ms at peak")
COLUMNS += ("inputs, GB", "held beside them, GB", "compiling, s")


def row(name: str, figures: dict) -> str:
    """A line of a Markdown table."""
    needed = figures["weights"] + figures["cache"]
    cells = [name, *(f"{figures[key] / GB:.2f}" for key in ("weights", "cache", "read"))]
    cells += [f"{figures['read'] / needed:.2f}", f"{1e3 * figures['read'] / figures['bandwidth']:.2f}"]
    cells += [f"{figures['arguments'] / GB:.2f}", f"{figures['held'] / GB:.2f}", f"{figures['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=CASES, help="may be given several times")
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in arguments.only or CASES:
        print(row(name, measure(CASES[name])), flush=True)


if __name__ == "__main__":
    main()
