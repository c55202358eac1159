"""Converts a synthetic checkpoint of real shapes, and exports it: peak memory, and speed against copying.

    python benchmarks/convert.py FOLDER [--config 34b] [--layers N]

FOLDER takes three times the checkpoint's size (7B: 14.9 GB). Copies, conversion and export end with a sync.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Iterator

import ml_dtypes
import numpy as np
import yaml

from unitoken_jax.config import published_sequence
from unitoken_jax.config_file import load_config
from unitoken_jax.convert.from_torch import expected_shapes
from unitoken_jax.convert.torch import configs, rules, writers
from unitoken_jax.convert.torch.report import Tensor
from unitoken_jax.sequence.tokenizer import train_tokenizer

SHARD_BYTES = 10**9
# The command, and then the largest memory of its process, mapped files included ("VmHWM: 123 kB").
COMMAND = """
import sys
from unitoken_jax.cli.main import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def tensors(model, networks: Container[str], dtype) -> Iterator[tuple[str, Tensor]]:
    """Tensors of `networks` by torch name, made when read: a block of random numbers again and again, norms'
    weights 1."""
    # Of odd length, so that it begins elsewhere in each row of a matrix.
    block = np.random.default_rng(0).normal(0, 0.02, 2**22 + 1).astype(dtype)
    for path, shape in expected_shapes(model).items():
        network = path.split("/")[0]
        if network in networks:
            values = np.ones(1, dtype) if path.endswith("/scale") else block
            for mapping in rules.tensor_mappings(path, shape):
                prefix = "vit." if network == "siglip" else ""
                read = functools.partial(np.resize, values, mapping.shape)
                yield prefix + mapping.torch, Tensor(mapping.torch, mapping.shape, block.dtype, "", read)


def write_checkpoint(folder: pathlib.Path, model) -> None:
    """A published checkpoint in bfloat16, with SigLIP's settings and Chameleon's tokenizer beside it."""
    codec, siglip = folder / "chameleon" / "tokenizer", folder / "SigLIP"
    for made in (codec, siglip):
        made.mkdir(parents=True)
    networks = ("siglip", "adapter", "decoder")
    writers.write_sharded(folder, tensors(model, networks, ml_dtypes.bfloat16), SHARD_BYTES)
    tokenizer = train_tokenizer(["a photo of a cat"], model.vq.codes, model.decoder.vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    names = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "config.json").write_text(json.dumps(configs.published_config(model, names, "bfloat16")))
    (siglip / "config.json").write_text(json.dumps(configs.published_siglip(model.siglip)))
    writers.write_safetensors(codec / "vqgan.safetensors", dict(tensors(model, ("vqgan",), np.float32)))
    (codec / "vqgan.yaml").write_text(yaml.safe_dump(configs.published_vq(model.vq)))
    tokenizer.save(codec / "text_tokenizer.json")


def copy(source: pathlib.Path) -> float:
    """Seconds."""
    copy_path = source.with_name("copy")
    start = time.monotonic()
    subprocess.run(["cp", "-r", source, copy_path], check=True)
    os.sync()
    took = time.monotonic() - start
    shutil.rmtree(copy_path)
    return took


def unitoken(*arguments) -> tuple[float, float]:
    """Seconds of `unitoken ARGUMENTS`, and its peak in GiB."""
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    os.sync()
    return time.monotonic() - start, int(process.stdout.split()[-2]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--config", default="7b", choices=["7b", "34b"])
    parser.add_argument("--layers", type=int, help="decoder layers, where the disk is small")
    arguments = parser.parse_args()
    model = load_config(f"unitoken_{arguments.config}").model
    depth = arguments.layers or model.decoder.depth
    model = dataclasses.replace(
        model, decoder=dataclasses.replace(model.decoder, depth=depth), sequence=published_sequence()
    )
    source = arguments.folder / "checkpoint"
    if not source.exists():
        write_checkpoint(source, model)
        os.sync()
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    copies = [copy(source)]  # the conversion lies between two copies: disks drift
    made, back = source.with_name("model"), source.with_name("back")
    took, peak = unitoken("convert", "--checkpoint", source, "--out", made)
    copies.append(copy(source))
    print(f"checkpoint {size / 1e9:.1f} GB, {depth} layers")
    print(f"copies {copies[0]:.0f} s and {copies[1]:.0f} s ({size / 1e6 / np.mean(copies):.0f} MB/s)")
    print(f"conversion {took:.0f} s, {np.mean(copies) / took:.0%} of the copies' speed, peak {peak:.2f} GiB")
    took, peak = unitoken("export", "--model", made, "--out", back)
    print(f"export {took:.0f} s, {np.mean(copies) / took:.0%} of the copies' speed, peak {peak:.2f} GiB")
    shutil.rmtree(made)
    shutil.rmtree(back)


if __name__ == "__main__":
    main()
