"""A made-up 7B model on a small machine, from its files to an answer: seconds, peak memory, bytes a step.

    python benchmarks/quantize.py FOLDER [--bits 8] [--layers N] [--before] [--keep]

FOLDER takes 25 GB: a model directory of real shapes in bfloat16, written piece by piece (every kernel repeats
one block of random numbers), and its quantized copy. Each step is a process of its own: starting alone,
`unitoken quantize`, loading the copy, an answer of 8 tokens, a row of codes; all load anew. Seconds of both
cores together are `cpu`: on a machine that others use, they say more than the clock.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from unitoken_jax.checkpoint.model_directory import PARAMS, finalize, staging_path
from unitoken_jax.checkpoint.param_store import ArraySpec, ParamStore
from unitoken_jax.config import ModelConfig, published_sequence
from unitoken_jax.config_file import load_config
from unitoken_jax.convert.from_torch import expected_shapes
from unitoken_jax.sequence.tokenizer import train_tokenizer

# What each process runs; it prints what it measured as one line of JSON.
CHILD = """
import json, sys, time
start = time.monotonic()
import jax
from unitoken_jax import UniToken
from unitoken_jax.generate import image
from unitoken_jax.generate.scheduler import DecodeSession
def peak_gib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
step, model, quantize = sys.argv[1], sys.argv[2], sys.argv[3] or None
if step != "start":
    loading = time.monotonic()
    model = UniToken.load(model, quantize=quantize)
    jax.block_until_ready(model.params)
result = {"load": time.monotonic() - loading, "cpu": time.process_time()} if step != "start" else {}
result["load_peak"] = peak_gib()
if step == "answer":
    began = time.monotonic()
    model.answer([["what is this?"]], max_tokens=8)
    result["answer"] = time.monotonic() - began
if step == "draw":
    began = time.monotonic()
    _, prompts, grammar, sampling = image.plan_drawing(model, ["a red circle"])
    session = DecodeSession(model, 0, 1)
    row = next(image.draw_codes(session, prompts, grammar, sampling, grammar.columns))
    result |= {"draw": time.monotonic() - began, "tokens": len(row[1])}
result |= {"peak": peak_gib(), "seconds": time.monotonic() - start}
print(json.dumps(result))
"""
COMMAND = """
import json, sys, time
start = time.monotonic()
from unitoken_jax.cli.main import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
peak = int(peak.split()[1]) / 2**20
print(json.dumps({"peak": peak, "seconds": time.monotonic() - start, "cpu": time.process_time()}))
sys.exit(code)
"""


def write_model(path: pathlib.Path, config: ModelConfig) -> None:
    """A model directory of `config` in bfloat16 (the VQ-GAN in float32), a layer at a time."""
    block = np.random.default_rng(0).normal(0, 0.02, 2**24).astype(np.float32)
    narrow = block.astype(ml_dtypes.bfloat16)
    arrays = {
        name: ArraySpec(
            shape,
            np.dtype(np.float32 if name.startswith("vqgan/") else ml_dtypes.bfloat16),
            name.startswith(("decoder/layers/", "siglip/layers/")),
        )
        for name, shape in expected_shapes(config).items()
    }
    store = ParamStore(staging_path(path), arrays, "benchmarks/quantize.py")
    for name, spec in arrays.items():
        source = block if spec.dtype == np.float32 else narrow
        value = np.resize(source, math.prod(spec.piece_shape)).reshape(spec.piece_shape)
        value = np.ones_like(value) if name.endswith("/scale") else value
        for layer in range(spec.shape[0]) if spec.stacked else (None,):
            store.write(name, layer, value)
    store.publish(store.folder / PARAMS)
    tokenizer = train_tokenizer(["a photo of a cat"], config.vq.codes, config.decoder.vocab_size)
    finalize(path, config, tokenizer)


def measure(code: str, *arguments: str) -> dict:
    """What a process that runs `code` says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def size(path: pathlib.Path) -> float:
    """GB of all files below `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--config", default="unitoken_7b", help="a file of configs/")
    parser.add_argument("--layers", type=int, help="of the decoder, where the disk is small")
    parser.add_argument("--before", action="store_true", help="also load the original with quantize=")
    parser.add_argument("--keep", action="store_true", help="leave the model directories there")
    arguments = parser.parse_args(argv)
    root = pathlib.Path(__file__).parents[1]
    config = load_config(str(root / "configs" / f"{arguments.config}.py")).model
    depth = arguments.layers or config.decoder.depth
    decoder = dataclasses.replace(config.decoder, depth=depth)
    config = dataclasses.replace(config, decoder=decoder, sequence=published_sequence())
    original, copy = arguments.folder / "model", arguments.folder / f"model{arguments.bits}"

    def say(step: str, measured: dict) -> None:
        load = ", ".join(f"{value:.2f}" for value in os.getloadavg()[:1])
        figures = ", ".join(f"{name} {value:.2f}" for name, value in measured.items())
        print(f"{step}: {figures} (load average {load})", flush=True)

    if not original.exists():
        start = time.monotonic()
        write_model(original, config)
        say("make", {"seconds": time.monotonic() - start, "GB": size(original)})
    say("start, imports", measure(CHILD, "start", "", ""))
    if not copy.exists():
        made = ("quantize", "--model", str(original), "--out", str(copy), "--bits", str(arguments.bits))
        say("quantize", measure(COMMAND, *made) | {"GB": size(copy)})
    if arguments.before:
        say("load the original", measure(CHILD, "load", str(original), f"int{arguments.bits}"))
    for step in ("load", "answer", "draw"):
        say(step, measure(CHILD, step, str(copy), ""))
    if not arguments.keep:
        shutil.rmtree(original)
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()
