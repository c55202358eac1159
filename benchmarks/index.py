"""What a length index costs: making it, opening it, the first row, and memory.

    python benchmarks/index.py FOLDER [--rows 400000] [--workers 2]

Conversations of about 300 bytes, half of them with one of a hundred JPEG files.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from loader import CODES, MODEL, WORDS, make_data

from unitoken_jax.config import DataConfig, SourceConfig
from unitoken_jax.data.index import open_index
from unitoken_jax.data.loader import Loader
from unitoken_jax.sequence.tokenizer import train_tokenizer

IMAGES = 100


def make_rows(folder: pathlib.Path, count: int) -> pathlib.Path:
    make_data(folder, IMAGES)
    path = folder / f"rows-{count}.jsonl"
    if not path.exists():
        words = np.random.default_rng(0).choice(WORDS.split(), (1000, 50))
        with open(path, "w") as file:
            for i in range(count):
                text = " ".join(words[i % 1000])
                mark = "<image>" if i % 2 else ""
                turns = [{"from": "human", "value": mark + text}, {"from": "gpt", "value": f"number {i}"}]
                image = {"image": f"{i % IMAGES}.jpg"} if i % 2 else {}
                file.write(json.dumps(image | {"conversations": turns}) + "\n")
    return path


def memory() -> float:
    """Largest memory of this process in MiB, mapped files included."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer([WORDS] * 4, CODES, 1024)
    path = make_rows(arguments.folder, arguments.rows)
    source, before, start = SourceConfig(str(path)), os.times(), time.monotonic()
    if not arguments.again:
        open_index(source, MODEL, tokenizer, workers=arguments.workers)
        spent = [after - then for after, then in zip(os.times()[:4], before[:4])]
        print(
            f"{arguments.rows} rows, {path.stat().st_size >> 20} MiB: {time.monotonic() - start:.1f} s with "
            f"{arguments.workers} processes, {sum(spent) / arguments.rows * 1e6:.0f} CPU us a row"
        )
        subprocess.run([sys.executable, *sys.argv, "--again"], check=True)
        return
    idle = memory()
    data = DataConfig(sources=(source,), row_length=8192, row_crops=10, row_images=8, mix="examples")
    pool = Loader(data, MODEL, tokenizer, seed=0).pools[0]
    opened = time.monotonic() - start
    start = time.monotonic()
    pool.names(0)
    print(f"opening it again: {opened:.2f} s; the first row: {time.monotonic() - start:.2f} s")
    start = time.monotonic()
    rows = pool.rows_in_epoch()
    print(f"planning the epoch's {rows} rows: {time.monotonic() - start:.1f} s")
    print(f"memory: {memory():.0f} MiB, {idle:.0f} of them before")


if __name__ == "__main__":
    main()
