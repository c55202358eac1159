"""How full packed rows are on the paper's mixture, against the published padding, and what planning costs.

    python benchmarks/packing.py [--examples 1000000]

The published sampler sorts samples by their recorded length (text and discrete tokens), shuffles them within
stretches of 500 global batches of 128, and pads each micro-batch of 16 to its longest sample; continuous
features are added afterwards.

At the end: what a sample of stage I takes of stage II's FLOPs, in rows whose first places (`data.row_prefix`)
go through no backward pass. Whole rows are counted, padding too, each as one long example.
"""

import argparse
import time

import numpy as np
from paper_mixture import five_crop_example, paper_lengths

from unitoken_jax.config import ModelConfig
from unitoken_jax.data import packing
from unitoken_jax.data.shuffle import permute_index
from unitoken_jax.model import flops
from unitoken_jax.sequence.example import ExampleSize

MODEL = ModelConfig()
STAGE_1, STAGE_2 = ("siglip", "adapter"), ("siglip", "adapter", "decoder")
ROWS = [(5120, 10, 5), (8192, 10, 8), (10240, 10, 10), (16384, 20, 16), (16384, 10, 16)]
MICRO, GLOBAL = 16, 128


def padded(lengths: np.ndarray, recorded: np.ndarray) -> tuple[float, float]:
    """Share of tokens that are not padding under the published scheme: of each micro-batch alone, and where
    the eight micro-batches of a global batch wait for the longest of them."""
    order = np.argsort(recorded, kind="stable")[: len(lengths) // GLOBAL * GLOBAL]
    rng = np.random.default_rng(0)
    for start in range(0, len(order), GLOBAL * 500):
        rng.shuffle(order[start : start + GLOBAL * 500])
    batches = lengths[order].reshape(-1, GLOBAL // MICRO, MICRO)
    micro = batches.max(2)
    total = batches.sum()
    return total / (micro.sum() * MICRO), total / (micro.max(1).sum() * GLOBAL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=1_000_000)
    count = parser.parse_args().examples
    table = paper_lengths(count)
    print(f"{count} samples, {table[:, 0].mean():.0f} tokens and {table[:, 1].mean():.2f} crops on average")
    start = time.process_time()
    permute_index(np.arange(count), count, 1)
    print(f"shuffle: {(time.process_time() - start) / count * 1e6:.2f} us a sample")
    print("stage I: samples that read an image; stage II: the whole mixture")
    for stage, chosen in (("I", table[table[:, 1] > 0]), ("II", table)):
        micro, waiting = padded(chosen[:, 0], chosen[:, 4])
        print(f"stage {stage}, published padding: {micro:.3f} of tokens; {waiting:.3f} with ranks waiting")
        for row in ROWS:
            lengths = chosen[chosen[:, 0] <= row[0], :4]
            start = time.process_time()
            rows = sum(
                len(packing.make_plan(lengths[at : at + 65536], ExampleSize(*row, row[0]), [0, at]))
                for at in range(0, len(lengths), 65536)
            )
            seconds = time.process_time() - start
            tokens, crops = (lengths[:, i].sum() / (rows * row[i]) for i in (0, 1))
            print(
                f"stage {stage}, rows of {row[0]:5} tokens, {row[1]:2} crops: {tokens:.3f} of tokens, "
                f"{crops:.3f} of crops; {tokens / micro:.2f} ({tokens / waiting:.2f}) times the padding's; "
                f"{len(lengths) / len(chosen):.3f} of samples fit; {seconds / len(lengths) * 1e6:.1f} us each"
            )
    stage_one(table[table[:, 1] > 0][:65536])


def stage_one(chosen: np.ndarray) -> None:
    """Stage I's FLOPs a sample over stage II's, for rows as configs/stage1.py has them and other prefixes."""
    length, crops, images = 8192, 10, 8
    whole = five_crop_example(MODEL)
    ratio = _flops(whole, STAGE_1) / _flops(whole, STAGE_2)
    print(f"stage I / stage II in FLOPs: one five-crop sample without padding {ratio:.3f}")
    for name, table in (("five-crop samples", chosen[chosen[:, 1] == 5]), ("all of stage I", chosen)):
        base = None
        for prefix in (0, 1024, 1536, 2048, 2304):
            rows = len(
                packing.make_plan(table[:, :4], ExampleSize(length, crops, images, length - prefix), [0])
            )
            row = flops.example(length, 0.03 * length, prefix, crops, images)
            if base is None:
                base = rows * _flops(row, STAGE_2)
            fill = table[:, 0].sum() / (rows * length)
            print(
                f"{name}, {prefix:4} of {length} places set apart: "
                f"{rows * _flops(row, STAGE_1) / base:.3f}, rows {fill:.3f} full"
            )


def _flops(work: flops.Work, trained: tuple[str, ...]) -> float:
    return sum(flops.training(MODEL, work, trained).values())


if __name__ == "__main__":
    main()
