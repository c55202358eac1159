"""Tokens a second against model size, batch and context: measured with random weights, and drawn.

    python benchmarks/decode_speed.py --out decode_speed.json --png docs/decode_speed.png
    python benchmarks/decode_speed.py --small --out small.json --png small.png    # seconds: does it work?

Text, greedy, a token a pass, on whatever jax runs on. Passes are timed where the context is full; prompts and
compiling are not counted. Each point is written to the JSON when it is there, and the same command goes on
after the last one. Needs matplotlib beside jax, flax and numpy.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import decode_timing
import jax
import numpy as np

from unitoken_jax.config import DecoderConfig, ModelConfig
from unitoken_jax.generate import decode
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES

PROMPT = 64  # tokens
SIZES = {
    "6M": DecoderConfig(vocab_size=8192, width=192, depth=6, heads=3, kv_heads=3, mlp=512),
    "25M": DecoderConfig(vocab_size=8192, width=384, depth=10, heads=6, kv_heads=6, mlp=1024),
    "100M": DecoderConfig(vocab_size=8192, width=768, depth=12, heads=12, kv_heads=12, mlp=2048),
    "400M": DecoderConfig(vocab_size=8192, width=1536, depth=13, heads=24, kv_heads=24, mlp=4096),
}
SMALL = {
    "small": DecoderConfig(vocab_size=256, width=64, depth=1, heads=2, kv_heads=2, mlp=96),
    "smaller": DecoderConfig(vocab_size=256, width=32, depth=1, heads=2, kv_heads=2, mlp=48),
}
# Each panel varies one number; the others are these.
BASE = {"size": "100M", "batch": 1, "context": 512}
PANELS = {
    "size": list(SIZES),
    "batch": [1, 2, 4, 8, 16, 32],
    "context": [256, 512, 1024, 2048, 4096],
}
SMALL_BASE = {"size": "small", "batch": 1, "context": 96}
SMALL_PANELS = {"size": list(SMALL), "batch": [1, 2], "context": [96, 128]}
LABELS = {"size": "parameters", "batch": "rows at one time", "context": "tokens in the cache"}


def grid(base: dict, panels: dict, weights: list[str]) -> list[dict]:
    """The points, each once; those that share weights lie together."""
    points = [base | {name: value} for name, values in panels.items() for value in values]
    unique = {json.dumps({"weights": kind} | point): None for kind in weights for point in points}
    sizes = panels["size"]
    order = sorted(
        map(json.loads, unique), key=lambda p: (sizes.index(p["size"]), weights.index(p["weights"]))
    )
    return order


def parameters(config: DecoderConfig) -> int:
    """Matrices and embeddings; norms are left out."""
    layer = sum(inputs * outputs for inputs, outputs in decode_timing.kernels(config))
    return config.depth * layer + 2 * config.vocab_size * config.width


def measure(config: DecoderConfig, params: dict, weights: str, batch: int, context: int) -> dict:
    """One point: tokens a second (of all rows), milliseconds a pass."""
    module = decode_timing.make_module(ModelConfig(decoder=config), weights)
    rng = np.random.default_rng(0)
    prompts = [
        decode.Prompt(rng.integers(0, config.vocab_size, PROMPT, np.int32), np.full(PROMPT, -1, np.int32))
        for _ in range(batch)
    ]
    sampling = decode_timing.make_sampling(np.full(context - PROMPT, MODEL_CHOOSES), None, top_k=1)
    passes = int(np.clip(1e9 / parameters(config), 6, min(64, context - PROMPT - 4)))
    start = context - PROMPT - 1 - passes
    timing = decode_timing.timed(
        module,
        params,
        decode.pad_prompts(prompts, batch, PROMPT),
        sampling,
        decode.DecodeSpec(greedy=True),
        [start] * 3,
        passes,
    )
    seconds = statistics.median(run["seconds"] / run["passes"] for run in timing["runs"])
    return {
        "tokens_per_second": batch / seconds,
        "pass_milliseconds": 1e3 * seconds,
        "passes": passes,
        "compile_seconds": timing["compile_seconds"],
    }


def draw(results: dict, base: dict, panels: dict, sizes: dict, out: str) -> None:
    """The three panels, a line for each kind of weights, as a PNG."""
    import matplotlib.figure

    points = results["points"]
    figure = matplotlib.figure.Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels.items()):
        others = {key: value for key, value in base.items() if key != name}
        for weights in dict.fromkeys(point["weights"] for point in points):
            fixed = others | {"weights": weights}
            curve = [point for point in points if fixed.items() <= point.items() and point[name] in values]
            curve.sort(key=lambda point: values.index(point[name]))
            x = [parameters(sizes[point[name]]) if name == "size" else point[name] for point in curve]
            axes.plot(x, [point["tokens_per_second"] for point in curve], marker=".", label=weights)
        title = ", ".join(f"{key} {value}" for key, value in others.items())
        axes.set(title=title, xlabel=LABELS[name], xscale="log", yscale="log")
        if name != "size":
            axes.set_xticks(values, list(map(str, values)))
            axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("tokens a second")
    figure.axes[0].legend(fontsize=8)
    machine = results["machine"]
    figure.suptitle(f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']}", fontsize=9)
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="JSON", required=True, help="figures; what is in it is not repeated")
    parser.add_argument("--png", help="the three panels")
    parser.add_argument("--weights", help="default: float32,int8 on a CPU, bfloat16,int8 elsewhere")
    parser.add_argument("--small", action="store_true", help="a tiny grid, to see that it runs")
    arguments = parser.parse_args(argv)
    backend = jax.default_backend()
    weights = (arguments.weights or ("float32,int8" if backend == "cpu" else "bfloat16,int8")).split(",")
    known_weights = ("float32", "bfloat16", "int8", "int4")
    if unknown := [kind for kind in weights if kind not in known_weights]:
        parser.error(f"--weights names {', '.join(unknown)}; expected some of {', '.join(known_weights)}")
    sizes, base, panels = (SMALL, SMALL_BASE, SMALL_PANELS) if arguments.small else (SIZES, BASE, PANELS)
    machine = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.__version__,
    }
    out, results = pathlib.Path(arguments.out), {"machine": machine, "points": []}
    if out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
        if results["machine"] != machine:
            parser.error(f"{out} holds figures of {results['machine']}, this is {machine}: name another file")
    held, params = None, None
    for point in grid(base, panels, weights):
        if any(point.items() <= measured.items() for measured in results["points"]):
            continue
        config = sizes[point["size"]]
        if held != (point["size"], point["weights"]):
            params = None  # frees the last ones first
            params = decode_timing.random_decoder(ModelConfig(decoder=config), point["weights"])
            held = point["size"], point["weights"]
        start = time.perf_counter()
        figures = measure(config, params, point["weights"], point["batch"], point["context"])
        results["points"].append(point | {"parameters": parameters(config)} | figures)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(
            f"{point['size']}, {point['weights']}, {point['batch']} rows, {point['context']} tokens: "
            f"{figures['tokens_per_second']:,.1f} tokens/s, {figures['pass_milliseconds']:.2f} ms a pass "
            f"({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    if arguments.png:
        draw(results, base, panels, sizes, arguments.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
