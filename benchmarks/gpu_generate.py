"""Drawing 512-px images with a random UniToken-7B on one GPU: seconds, passes, bytes. See gpu_generate.sh.

Guidance 3, top-k 4,000: each image is two rows, and only the columns of the head that are codes are read.
Each measurement is a process of its own: its peak memory is its own, and running out ends nothing else.
One image is drawn whole; of a batch, some passes at each third of an image are measured, the rest follows.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from gpu_train import device_memory

from unitoken_jax import config as configs

SMALL = configs.ModelConfig(
    siglip=configs.SiglipConfig(image_size=24, patch_size=8, width=32, depth=1, heads=2, mlp=48),
    vq=configs.VQConfig(codes=64, base_channels=32, latent_channels=4, embed_dim=4),
    decoder=configs.DecoderConfig(vocab_size=256, width=128, depth=2, heads=4, kv_heads=4, mlp=128),
    sequence=configs.SequenceConfig(image_size=(64, 64)),
)
PROMPTS = 43, 3  # tokens with begin-of-image and both sizes: a sentence to draw, and none
BUCKET = 64  # what both are padded to
SLACK = 4e9  # bytes of what is not counted; a batch below fits the rest
# The tokens a pass that speculative drawing settles as published (SJD-PAC, arXiv 2603.18599, Lumina-mGPT).
PUBLISHED = 4.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """One measurement. `what`: "draw", or pixels from codes ("vq") or features of crops ("siglip")."""

    what: str = "draw"
    weights: str = "bfloat16"
    images: int = 1  # 0: as many as fit
    window: int = 1
    part: int = 0  # passes at each third of an image; 0: a whole image
    greedy: bool = False  # no sampling: what it takes
    small: bool = False

    def model(self) -> configs.ModelConfig:
        return SMALL if self.small else configs.ModelConfig()


# In the order of their worth: what comes last is left out first where time is short.
MEASUREMENTS = {
    "bf16": Plan(),
    "int8": Plan(weights="int8"),
    "window16": Plan(window=16),
    "batch-bf16": Plan(images=0, part=8),
    "batch-int8": Plan(weights="int8", images=0, part=8),
    "window64": Plan(window=64),
    "int4": Plan(weights="int4"),
    "bf16-greedy": Plan(greedy=True),
    "vq": Plan("vq", "float32", images=32),
    "siglip": Plan("siglip", images=128),
}
# On one H200: seconds an image, or images (crops) a second.
GOALS = {"bf16": 3.6, "int8": 2.0, "window16": 1.0, "window64": 1.0}
RATES = {"batch-bf16": 6, "batch-int8": 6, "vq": 350, "siglip": 1000}


def geometry(model: configs.ModelConfig) -> dict[str, int]:
    """Of an image: `codes`, `columns`, tokens `drawn` after begin and sizes, and `slots` of cache a row."""
    rows, columns = (side // model.vq.stride for side in model.sequence.image_size)
    drawn = rows * (columns + 1)  # a new-line a row
    return {"codes": rows * columns, "columns": columns, "drawn": drawn, "slots": BUCKET + drawn}


def needs(plan: Plan, images: int) -> float:
    """Bytes that drawing `images` takes, about."""
    from decode_timing import token_bytes, weight_bytes

    config, shape, rows = plan.model().decoder, geometry(plan.model()), 2 * images
    weights = weight_bytes(config, plan.weights, 2 * config.vocab_size)  # the embeddings, too
    cache = rows * shape["slots"] * token_bytes(config, plan.weights)
    scores = rows * config.heads * BUCKET * shape["slots"] * 4  # while prompts are read
    layer = rows * shape["slots"] * 2 * config.width * 2  # 8-bit keys and values as bfloat16
    return weights + cache + 3 * scores + (layer if plan.weights.startswith("int") else 0) + SLACK


def largest(plan: Plan, memory: float) -> int:
    """Images at one time that fit into `memory` bytes."""
    base = needs(plan, 0)
    return int(max(memory - base, 0) // (needs(plan, 1) - base))


def measure(plan: Plan) -> dict:
    """Compiles and runs a plan; its figures."""
    import decode_timing
    import jax

    from unitoken_jax.model import flops

    device = jax.devices()[0]
    figures = _draw(plan) if plan.what == "draw" else _images(plan)
    peak = flops.device(device.device_kind)
    bandwidth = peak.hbm_bandwidth if peak else None
    if bandwidth and "pass_bytes" in figures:
        figures["hbm_share"] = figures["pass_bytes"] / figures["pass_seconds"] / bandwidth
    return dataclasses.asdict(plan) | {
        "device": device.device_kind,
        "jax": jax.__version__,
        "hbm_bandwidth": bandwidth,
        **figures,
        "peak_memory": decode_timing.peak_memory(),
    }


def _draw(plan: Plan) -> dict:
    import decode_timing

    from unitoken_jax.generate import decode
    from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

    model, rng = plan.model(), np.random.default_rng(0)
    config, shape, number = model.decoder, geometry(model), plan.images
    # Codes come after the control tokens in the published vocabulary; where does not matter here.
    codes = np.arange(4, 4 + model.vq.codes, dtype=np.int32)
    row = [MODEL_CHOOSES] * shape["columns"] + [config.vocab_size - 1]
    sampling = decode_timing.make_sampling(row * (shape["drawn"] // len(row)), codes, stride=len(row))
    prompts = [
        decode.Prompt(rng.integers(0, config.vocab_size, n, np.int32), np.full(n, -1, np.int32))
        for n in PROMPTS
        for _ in range(number)
    ]
    window = min(plan.window, shape["drawn"])
    whole = not plan.part
    starts = [1] if whole else [shape["drawn"] * (2 * third + 1) // 6 for third in range(3)]
    timing = decode_timing.timed(
        decode_timing.make_module(model, plan.weights),
        decode_timing.random_decoder(model, plan.weights),
        decode.pad_prompts(prompts, len(prompts), BUCKET),
        sampling,
        decode.DecodeSpec(window, guided=True, greedy=plan.greedy),
        starts,
        shape["drawn"] if whole else min(plan.part, shape["drawn"] // 6),
    )
    runs = timing["runs"]
    seconds = statistics.mean(run["seconds"] / run["passes"] for run in runs)
    passes = runs[0]["passes"] if whole else shape["codes"] - 1
    image = timing["first_seconds"] + passes * seconds
    context = statistics.mean(PROMPTS) + shape["drawn"] / 2
    weights = decode_timing.weight_bytes(config, plan.weights, model.vq.codes)
    cache = 2 * number * context * decode_timing.token_bytes(config, plan.weights)
    return timing | {
        "passes": passes,
        "pass_seconds": seconds,
        "image_seconds": image / number,
        "batch_seconds": image,
        "images_per_second": number / image,
        "tokens_per_second": number * shape["drawn"] / image,
        "settled_a_pass": sum(run["settled"] for run in runs) / sum(run["passes"] for run in runs),
        "seconds_at_published": timing["first_seconds"] + shape["codes"] / PUBLISHED * seconds,
        "pass_bytes": weights + cache,
        "weight_bytes": weights,
    }


def _images(plan: Plan) -> dict:
    """Codes -> pixels, or crops -> the features that the decoder reads, `plan.images` at one time."""
    import decode_timing
    import jax
    import jax.numpy as jnp

    from unitoken_jax.model.init import abstract_params
    from unitoken_jax.model.layers import to_pixels
    from unitoken_jax.model.unitoken import UniTokenModel
    from unitoken_jax.model.vqgan import VQModel

    model, rng, dtype = plan.model(), np.random.default_rng(0), jnp.dtype(plan.weights)
    boxes = abstract_params(model)
    if plan.what == "vq":
        side, network = geometry(model)["columns"], VQModel(model.vq, dtype)
        params = decode_timing.random_network(boxes["vqgan"], plan.weights)
        inputs = rng.integers(0, model.vq.codes, (plan.images, side, side), np.int32)
        program = jax.jit(lambda p, x: to_pixels(network.apply({"params": p}, x, method="decode")))
    else:
        side, network = model.siglip.image_size, UniTokenModel(model, dtype)
        boxes = {name: boxes[name] for name in ("siglip", "adapter")}
        params = decode_timing.random_network(boxes, plan.weights)
        inputs = rng.integers(0, 256, (1, plan.images, side, side, 3), np.uint8)
        program = jax.jit(lambda p, x: network.apply({"params": p}, x, method="features"))
    inputs, seconds = jax.device_put(inputs), []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(program(params, inputs))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    return {"compile_seconds": seconds[0] - median, "images_per_second": plan.images / median}


def attempt(name: str, plan: Plan, until: float) -> dict | None:
    """`measure` in a process of its own; None where it ran out of memory or time. Raises RuntimeError."""
    command = [sys.executable, __file__, "--measure", json.dumps(dataclasses.asdict(plan))]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=max(until - time.monotonic(), 1)
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped, no time is left", flush=True)
        return None
    if process.returncode == 0:
        figures = {"name": name} | json.loads(process.stdout.splitlines()[-1])
        print("\n".join(lines_of(figures)), flush=True)
        return figures
    if "RESOURCE_EXHAUSTED" in process.stderr:
        print(f"{name}: {plan.images} at one time are out of memory", flush=True)
        return None
    raise RuntimeError(f"{name} failed:\n{process.stderr[-4000:]}")


def measured(name: str, plan: Plan, memory: float | None, begin: float, until: float) -> dict | None:
    """Figures; of a batch as large as fits, which is made smaller by a quarter until it does."""
    number = plan.images or (largest(plan, memory) if memory else 4)
    while number and time.monotonic() < begin:
        if figures := attempt(name, dataclasses.replace(plan, images=number), until):
            return figures
        number = number * 3 // 4
    return None


def lines_of(figures: dict) -> list[str]:
    """What people read of one measurement."""
    f, name, goal = figures, figures["name"], not figures["small"]
    memory = "" if f["peak_memory"] is None else f"; peak memory {f['peak_memory'] / 1e9:.1f} GB"
    compiled = f"compiled in {f['compile_seconds']:.0f} s{memory}"
    rate = f"{f['images_per_second']:.2f} {'crops' if f['what'] == 'siglip' else 'images'}/s"
    if goal and name in RATES:
        rate += f" (goal on an H200: {RATES[name]:,})"
    if f["what"] != "draw":
        return [f"{name}: {f['images']} at one time, {f['weights']}: {rate}; {compiled}"]
    cache = "int8" if f["weights"].startswith("int") else f["weights"]
    goal_text = f" (goal on an H200: {GOALS[name]})" if goal and name in GOALS and f["window"] == 1 else ""
    share = f", {f['hbm_share']:.0%} of the HBM's bandwidth" if "hbm_share" in f else ""
    lines = [
        f"{name}: {f['images']} at one time, weights {f['weights']}, cache {cache}, window {f['window']}"
        f"{', greedy' if f['greedy'] else ''}",
        f"  {f['image_seconds']:.3f} s an image{goal_text}, {rate}, {f['tokens_per_second']:,.0f} tokens/s",
        f"  first token after {f['first_seconds']:.3f} s, then {f['passes']} passes of "
        f"{1e3 * f['pass_seconds']:.2f} ms",
        f"  {f['pass_bytes'] / 1e9:.4g} GB a pass by count, {f['weight_bytes'] / 1e9:.4g} of weights{share}",
        f"  {compiled}, {f['own_bytes'] / 1e9:.4g} GB beside weights and cache",
    ]
    if f["window"] > 1:
        goal_text = f" (goal on an H200: {GOALS[name]})" if goal and name in GOALS else ""
        lines.insert(
            3,
            f"  random weights settle {f['settled_a_pass']:.2f} tokens a pass; by arithmetic, not measured, "
            f"{f['seconds_at_published']:.3f} s at {PUBLISHED} codes a pass, as SJD-PAC publishes{goal_text}",
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("gpu_generate.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="JSON", help="write every figure here too")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(MEASUREMENTS)} (default: all)")
    parser.add_argument("--images", type=int, help="in the batches (default: as many as fit)")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="begin no new try after these (default 7.5)"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one Plan, as JSON
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Plan(**json.loads(arguments.measure)))))
        return 0
    names = arguments.only.split(",") if arguments.only else list(MEASUREMENTS)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        parser.error(f"--only names {', '.join(unknown)}; expected some of {', '.join(MEASUREMENTS)}")
    begin = time.monotonic() + 60 * arguments.minutes
    until = begin + 90
    memory, results, left = device_memory(), [], []
    for name in names:
        plan = dataclasses.replace(MEASUREMENTS[name], small=arguments.small)
        if plan.images == 0 and arguments.images:
            plan = dataclasses.replace(plan, images=arguments.images)
        if arguments.small and plan.what != "draw":
            plan = dataclasses.replace(plan, images=2)
        figures = measured(name, plan, memory, begin, until)
        results += [figures] if figures else []
        left += [] if figures else [name]
        if arguments.out and results:  # after each, as a machine may be taken away
            pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results:
        print(f"on {results[0]['device']}, jax {results[0]['jax']}")
    if left:
        print(f"not measured, too little memory or time: {', '.join(left)}", file=sys.stderr)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
