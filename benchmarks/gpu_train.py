"""Training steps of UniToken-7B with random weights on one GPU: tokens/s, MFU, peak memory. See gpu_train.sh.

Each row of the batch is one five-crop image with a question and an answer, laid out as stage I wants it.
Stage I: the decoder is frozen, in bfloat16. Stage II: float32 weights, bfloat16 first moments.
Each measurement is a process of its own: its peak memory is its own, and running out ends nothing else.
Where not all layers fit, two depths are measured, and the rest follows by the layer.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from unitoken_jax import config as configs

SMALL = configs.ModelConfig(
    siglip=configs.SiglipConfig(image_size=24, patch_size=8, width=32, depth=1, heads=2, mlp=48),
    vq=configs.VQConfig(codes=16),
    decoder=configs.DecoderConfig(vocab_size=256, width=64, depth=4, heads=4, kv_heads=4, mlp=96),
    sequence=configs.SequenceConfig(image_size=(64, 64)),
)
TEXT = 250  # tokens of question and answer; half are learnt
# Bytes of weights, gradients and moments a parameter: of the decoder, and of what trains beside it.
STATE = {1: 2, 2: 14}
TRAINED = 14
# What a layer keeps for its backward pass, in bytes a token and unit of width; the fastest first.
KEPT = {"dots": 25, "qkv": 9, "full": 2}
SLACK = 2e9  # logits, one layer's own arrays, what XLA adds
GOALS = {1: 20_000, 2: 13_600}  # tokens/s of the 7B model on one H200; 60 % of its peak in stage II


@dataclasses.dataclass(frozen=True)
class Plan:
    """One measurement."""

    stage: int
    depth: int
    remat: str
    rows: int
    steps: int
    attention: str
    unroll: bool
    small: bool

    def config(self) -> configs.Config:
        """The run this is one of. Imports jax."""
        from unitoken_jax.train.optimizer import stage_groups

        model = SMALL if self.small else configs.ModelConfig()
        layout = row_layout(model)
        return configs.Config(
            model=dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, depth=self.depth)),
            data=configs.DataConfig(
                row_length=layout["length"], row_prefix=layout["room"], row_crops=5, rows=self.rows
            ),
            optimizer=configs.OptimizerConfig(groups=stage_groups(self.stage), moment_dtype="bfloat16"),
            train=configs.TrainConfig(
                remat=self.remat, attention=self.attention, scan_layers=not self.unroll
            ),
        )

    def needs(self) -> float:
        """Bytes it takes, about."""
        model = SMALL if self.small else configs.ModelConfig()
        c, v = model.decoder, model.siglip
        layer = 2 * c.width * c.head_dim * (c.heads + c.kv_heads) + 3 * c.width * c.mlp
        decoder = self.depth * layer + 2 * c.vocab_size * c.width
        vit = v.depth * (4 * v.width**2 + 2 * v.width * v.mlp) + c.width * (v.width + c.width)
        kept = KEPT[self.remat] * self.rows * row_layout(model)["length"] * c.width * self.depth
        return STATE[self.stage] * decoder + TRAINED * vit + kept + (0 if self.small else SLACK)


def row_layout(model: configs.ModelConfig) -> dict[str, int]:
    """Tokens of a row: `prefix` before the first continuous one, `soft` of those, TEXT; `room` for the prefix
    and the `length` of all, in whole blocks of 128."""
    height, width = (side // model.vq.stride for side in model.sequence.image_size)
    grid = model.siglip.grid
    prefix = height * (width + 1) + 4  # a new-line a row, begin, two sizes, SEP
    soft = grid**2 + 2 * grid * (2 * grid + 1)
    room = -(-prefix // 128) * 128
    return {"prefix": prefix, "soft": soft, "room": room, "length": room - (-(soft + TEXT) // 128) * 128}


def make_batch(config: configs.Config) -> dict[str, np.ndarray]:
    """As batch.py says, codes already made; numbers are random, the layout is `row_layout`'s."""
    model, rows, rng = config.model, config.data.rows, np.random.default_rng(0)
    layout, grid, side = row_layout(model), model.siglip.grid, model.siglip.image_size
    shape = (rows, layout["length"])
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments", "positions")}
    batch |= {name: np.full(shape, -1, np.int32) for name in ("labels", "image_feature_index")}
    length = layout["prefix"] + layout["soft"] + TEXT
    places = np.r_[: layout["prefix"], layout["room"] : layout["room"] + layout["soft"] + TEXT]
    batch["tokens"][:, places] = rng.integers(1, model.decoder.vocab_size, (rows, length))
    batch["segments"][:, places], batch["positions"][:, places] = 1, np.arange(length)
    # The base crop, then four tiles with a new-line (a token) a row of the grid.
    tiles = np.full((2 * grid, 2 * grid + 1), -1)
    tiles[:, :-1] = np.arange(4 * grid**2).reshape(2 * grid, 2 * grid) + grid**2
    features = np.r_[np.arange(grid**2), tiles.ravel()]
    batch["image_feature_index"][:, layout["room"] : layout["room"] + layout["soft"]] = features
    learnt = places[-(TEXT // 2) :]
    batch["labels"][:, learnt] = batch["tokens"][:, learnt]
    batch["crops"] = rng.integers(0, 256, (rows, 5, side, side, 3), np.uint8)
    return batch


def measure(plan: Plan) -> dict:
    """Compiles and runs a plan's step; its figures."""
    import jax

    from unitoken_jax.model import flops
    from unitoken_jax.train.step import make_model, make_train_step

    config, device = plan.config(), jax.devices()[0]
    state, rates, vocabulary = random_state(config)
    model = make_model(config, rates)
    step = make_train_step(model, config, rates, vocabulary)
    batch = make_batch(config)
    work = flops.batch_work(config.model, batch)
    needed = flops.training(config.model, work, {path.split("/")[0] for path in rates})
    batch, seconds, losses = jax.device_put(batch), [], []
    for _ in range(2 + plan.steps):  # the first compiles, the second warms up
        start = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"losses {losses}")
    median = statistics.median(seconds[2:])
    peak = flops.device(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return dataclasses.asdict(plan) | {
        "device": device.device_kind,
        "jax": jax.__version__,
        "attention": model.kernel,
        "step_seconds": median,
        "slowest_and_fastest": [max(seconds[2:]), min(seconds[2:])],
        "compile_seconds": seconds[0] - median,
        "tokens": int(work.tokens),
        "samples": plan.rows,
        "flops": sum(needed.values()),
        "peak_flops": peak.flops if peak else None,
        "peak_memory": memory,
        "losses": [losses[0], losses[-1]],
    }


def random_state(config: configs.Config):
    """(State, rates, Vocabulary): weights drawn on the device, a frozen decoder's as bfloat16."""
    import jax
    import jax.numpy as jnp

    from unitoken_jax.model.init import abstract_params
    from unitoken_jax.model.sharding import LogicallyPartitioned
    from unitoken_jax.sequence import vocabulary
    from unitoken_jax.train import state as states
    from unitoken_jax.train.optimizer import peak_rates, transformation

    boxes = {name: tree for name, tree in abstract_params(config.model).items() if name != "vqgan"}
    boxes, structure = jax.tree.flatten(boxes, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned))
    paths = states.flatten(jax.tree.unflatten(structure, [box.value for box in boxes]))
    rates = peak_rates(paths, config.optimizer.groups)

    def create(key):
        keys = jax.random.split(key, len(boxes))
        leaves = [box.init(key, box.value.shape) for box, key in zip(boxes, keys)]
        flat = states.flatten(jax.tree.unflatten(structure, leaves))
        flat = {path: leaf if path in rates else leaf.astype(jnp.bfloat16) for path, leaf in flat.items()}
        return states.create(states.merge(flat, {}), rates, transformation(config.optimizer))

    # The generator that XLA has built in: threefry's, for 7 billion numbers, takes long to compile and run.
    state = jax.block_until_ready(jax.jit(create)(jax.random.key(0, impl="unsafe_rbg")))
    names = vocabulary.control_names(config.model.vq.codes)
    return state, rates, vocabulary.Vocabulary.from_names({name: i for i, name in enumerate(names)})


def attempt(plan: Plan) -> dict | None:
    """`measure` in a process of its own; None where it ran out of memory. Raises RuntimeError otherwise."""
    command = [sys.executable, __file__, "--measure", json.dumps(dataclasses.asdict(plan))]
    process = subprocess.run(command, capture_output=True, text=True)
    about = f"stage {plan.stage}, {plan.depth} layers, {plan.rows} rows, remat {plan.remat}"
    if process.returncode == 0:
        figures = json.loads(process.stdout.splitlines()[-1])
        print(f"{about}: {figures['step_seconds']:.3f} s a step", flush=True)
        return figures
    if "RESOURCE_EXHAUSTED" in process.stderr:
        print(f"{about}: out of memory", flush=True)
        return None
    raise RuntimeError(f"{about} failed:\n{process.stderr[-4000:]}")


def measured(stage: int, arguments, memory: float | None, until: float) -> list[dict]:
    """Figures of the deepest model that fits, and where that is not the whole, of half of it."""
    whole = (SMALL if arguments.small else configs.ModelConfig()).decoder.depth
    depths = [arguments.depth] if arguments.depth else [whole * eighths // 8 for eighths in range(8, 0, -1)]
    remats = [arguments.remat] if arguments.remat else list(KEPT)
    plans = [
        Plan(
            stage=stage,
            depth=depth,
            remat=remat,
            rows=arguments.rows,
            steps=arguments.steps,
            attention=arguments.attention,
            unroll=arguments.unroll,
            small=arguments.small,
        )
        for depth in depths
        for remat in remats
    ]
    for plan in plans:
        if (memory and plan.needs() > memory) or time.monotonic() > until:
            continue
        if figures := attempt(plan):
            results = [figures]
            if plan.depth < whole and plan.depth > 1:
                results.append(attempt(dataclasses.replace(plan, depth=plan.depth // 2)))
            return [result for result in results if result]
    return []


def at_depth(measured_depths: list[dict], depth: int) -> dict:
    """Figures of `depth` layers: measured, or by the layer from two depths; of one other depth, its own."""
    first = measured_depths[0]
    figures = {name: first[name] for name in ("step_seconds", "flops")}
    if first["depth"] == depth or len(measured_depths) == 1:
        depth = first["depth"]
    else:
        more, less = measured_depths
        for name, value in figures.items():
            layer = (value - less[name]) / (more["depth"] - less["depth"])
            figures[name] = value + (depth - more["depth"]) * layer
    rate, peak = figures["flops"] / figures["step_seconds"], first["peak_flops"]
    return figures | {
        "stage": first["stage"],
        "depth": depth,
        "extrapolated": first["depth"] != depth,
        "tokens_per_second": first["tokens"] / figures["step_seconds"],
        "samples_per_second": first["samples"] / figures["step_seconds"],
        "tflops_per_second": rate / 1e12,
        "mfu": rate / peak if peak else None,
        "tokens_per_second_at_peak": first["tokens"] * peak / figures["flops"] if peak else None,
        "measured": measured_depths,
    }


def report(results: list[dict], small: bool) -> list[str]:
    """What people read."""
    lines = []
    for stage in results:
        depths = " and ".join(str(result["depth"]) for result in stage["measured"])
        source = f"by the layer from {depths}" if stage["extrapolated"] else "measured"
        device = stage["measured"][0]["device"]
        lines += [
            f"stage {stage['stage']}, {stage['depth']} layers ({source}), on {device}:",
            f"  {stage['tokens_per_second']:,.0f} tokens/s, {stage['samples_per_second']:.2f} samples/s, "
            f"{stage['step_seconds']:.3f} s a step, {stage['tflops_per_second']:.1f} TFLOP/s",
        ]
        if stage["mfu"] is not None:
            goal = "" if small else f"; the goal on an H200 is {GOALS[stage['stage']]:,}"
            limit = f"{stage['tokens_per_second_at_peak']:,.0f} tokens/s at the device's peak"
            lines.append(f"  MFU {stage['mfu']:.1%}: {limit}{goal}")
        lines += map(_line, stage["measured"])
    if len(results) == 2:
        one, two = results
        seconds, work = (one[name] / two[name] for name in ("step_seconds", "flops"))
        lines.append(f"a sample in stage 1 takes {work:.2f} of stage 2's FLOPs, {seconds:.2f} of its time")
    return lines


def _line(figures: dict) -> str:
    memory = figures["peak_memory"]
    return (
        f"  {figures['depth']} layers: {figures['step_seconds']:.3f} s a step, compiled in "
        f"{figures['compile_seconds']:.0f} s, peak memory "
        f"{'unknown' if memory is None else f'{memory / 1e9:.1f} GB'}; remat {figures['remat']}, "
        f"attention {figures['attention']}, {figures['rows']} rows, {figures['tokens']} tokens"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("gpu_train.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="JSON", help="write every figure here too")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--stages", choices=("1", "2", "1,2"), default="1,2", help="default: both")
    parser.add_argument("--rows", type=int, default=2, help="rows, each an image with text (default 2)")
    parser.add_argument("--depth", type=int, help="layers to measure (default: as many as fit)")
    parser.add_argument("--remat", choices=tuple(KEPT), help="default: the fastest that fits")
    parser.add_argument("--attention", choices=("auto", "xla", "triton"), default="auto")
    parser.add_argument("--unroll", action="store_true", help="no loop over layers: slower to compile")
    parser.add_argument("--steps", type=int, default=8, help="timed steps (default 8)")
    parser.add_argument("--minutes", type=float, default=7, help="begin no new try after these (default 7)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one Plan, as JSON
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Plan(**json.loads(arguments.measure)))))
        return 0
    until = time.monotonic() + 60 * arguments.minutes
    memory = device_memory()
    whole = (SMALL if arguments.small else configs.ModelConfig()).decoder.depth
    results = []
    for stage in map(int, arguments.stages.split(",")):
        results_of_stage = measured(stage, arguments, memory, until)
        if not results_of_stage:
            print(f"stage {stage}: nothing ran: too little memory or time", file=sys.stderr)
            return 1
        results.append(at_depth(results_of_stage, whole))
    print("\n".join(report(results, arguments.small)))
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def device_memory() -> float | None:
    """Bytes of the first GPU that a process may use; None without one. Asked in another process, which
    gives the memory back."""
    ask = "import jax; print((jax.devices()[0].memory_stats() or {}).get('bytes_limit', 0))"
    environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.run([sys.executable, "-c", ask], env=environ, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"jax finds no device:\n{process.stderr[-2000:]}")
    return float(process.stdout.split()[-1]) or None


if __name__ == "__main__":
    sys.exit(main())
