"""Examples a second through the loader, against a straightforward PyTorch one, same files, same run.

    python benchmarks/loader.py FOLDER [--images 200] [--seconds 20] [--workers 0 1 2]

Every example is a 512-px JPEG of five SigLIP crops with a question and an answer, its VQ codes made
beforehand, as in the published pipeline. The peer does what the published code does for an example: open the
image, resize it and its 2 x 2 tiles, rescale and normalise them to float32 tensors, put token ids together,
pad a batch. Ours delivers uint8 crops (the device normalises them) and packed rows with masks and indices.

Each measurement is a process of its own. CPU time is that of the process and its workers, less what a process
that stops after its first batch takes; a busy machine disturbs it less than the rate.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from unitoken_jax.config import DataConfig, DecoderConfig, ModelConfig, SourceConfig, VQConfig
from unitoken_jax.data.codes import codes_path, write_codes
from unitoken_jax.data.loader import Loader
from unitoken_jax.sequence.tokenizer import Tokenizer, train_tokenizer

WORDS = "what is in this image ? a red door beside the green house and two old trees under a grey sky"
CODES = 64  # entries of the small codebook; their number changes nothing here
MODEL = ModelConfig(vq=VQConfig(codes=CODES), decoder=DecoderConfig(vocab_size=1024))


def make_data(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A JSONL file of `count` questions, each on a JPEG of its own, and codes for them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{count}.jsonl"
    if codes_path(path).exists():
        return path
    rng = np.random.default_rng(0)
    lines, codes = [], {}
    for i in range(count):
        # Smooth noise has about the detail, and the file size, of a photograph.
        small = Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8))
        small.resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=88)
        words = rng.choice(WORDS.split(), 120).tolist()
        turns = [("human", "<image>" + " ".join(words[:40])), ("gpt", " ".join(words[40:]))]
        turns = [{"from": who, "value": text} for who, text in turns]
        lines.append(json.dumps({"image": f"{i}.jpg", "conversations": turns}) + "\n")
        codes[f"{i}.jpg"] = rng.integers(0, CODES, (32, 32), np.int32)
    path.write_text("".join(lines))
    write_codes(codes_path(path), codes, MODEL)
    return path


def stream(side: str, path: pathlib.Path, workers: int, seconds: float) -> dict:
    """Takes batches for `seconds` after the first, which starts workers: examples in all, and a second."""
    opened, count = SIDES[side]
    batches = opened(path, train_tokenizer([WORDS] * 4, CODES, 1024), workers)
    first, timed = count(next(batches)), 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        timed += count(next(batches))
    rate = timed / (time.monotonic() - start)
    batches.close()
    return {"examples": first + timed, "rate": rate}


def measure(side: str, arguments, workers: int) -> tuple[float, float] | None:
    """(examples a second, CPU seconds an example); None where a library is missing."""
    rates = []
    for seconds in (0, arguments.seconds):
        command = [sys.executable, __file__, str(arguments.folder), "--images", str(arguments.images)]
        command += ["--seconds", str(seconds), "--workers", str(workers), "--one", side]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            return None
        rates.append((json.loads(out), used.ru_utime + used.ru_stime))
    (short, before), (long, after) = rates
    return long["rate"], (after - before) / max(1, long["examples"] - short["examples"])


def ours(path: pathlib.Path, tokenizer: Tokenizer, workers: int):
    data = DataConfig(
        sources=(SourceConfig(str(path)),),
        row_length=5120,
        row_crops=5,
        rows=8,
        codes="offline",
        workers=workers,
    )
    return Loader(data, MODEL, tokenizer, seed=0)


def peer(path: pathlib.Path, tokenizer: Tokenizer, workers: int):
    """Batches of 8 padded examples from torch's DataLoader."""
    import torch

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    codes = np.random.default_rng(0).integers(0, CODES, (len(rows), 1024))
    loader = torch.utils.data.DataLoader(
        PeerDataset(path.parent, rows, codes, tokenizer),
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
    )
    while True:
        yield from loader


class PeerDataset:
    """Map-style: one example an index."""

    def __init__(self, folder, rows, codes, tokenizer):
        self.folder, self.rows, self.codes, self.tokenizer = folder, rows, codes, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        import torch

        row = self.rows[i]
        image = Image.open(self.folder / row["image"]).convert("RGB")
        question, answer = (
            self.tokenizer.encode(turn["value"].removeprefix("<image>")) for turn in row["conversations"]
        )
        ids = [*self.codes[i].tolist(), *[0] * 3699, *question, *answer]
        labels = [-100] * (len(ids) - len(answer)) + list(answer)
        whole = image.resize((384, 384), Image.Resampling.BICUBIC)
        large = image.resize((768, 768), Image.Resampling.BICUBIC)
        boxes = [(x, y, x + 384, y + 384) for y in (0, 384) for x in (0, 384)]
        crops = [np.asarray(crop, np.float32) for crop in (whole, *map(large.crop, boxes))]
        pixels = np.stack([(crop / 255 - 0.5) / 0.5 for crop in crops]).transpose(0, 3, 1, 2)
        return torch.tensor(ids), torch.tensor(labels), torch.from_numpy(np.ascontiguousarray(pixels))


def collate(items):
    import torch

    ids, labels, pixels = zip(*items)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True), pad(labels, True, -100), torch.stack(pixels)


SIDES = {
    "unitoken_jax": (ours, lambda batch: int(batch["segments"].max(1).sum())),
    "PyTorch": (peer, lambda batch: len(batch[0])),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = make_data(arguments.folder, arguments.images)
    if arguments.one:
        print(json.dumps(stream(arguments.one, path, arguments.workers[0], arguments.seconds)))
        return
    print(f"{arguments.images} images, {os.cpu_count()} cores")
    for workers in arguments.workers:
        for side in SIDES:
            if (measured := measure(side, arguments, workers)) is None:
                print(f"{side}: left out (it failed, see above)")
                continue
            rate, cpu = measured
            print(
                f"{workers} workers, {side}: {rate:.1f} examples a second, {cpu * 1e3:.1f} CPU ms an example"
            )


if __name__ == "__main__":
    main()
