"""A made-up 7B model on a small machine, from PyTorch files to an answer and an image: seconds and memory.

    python benchmarks/quantize.py FOLDER [--bits 8] [--layers N] [--before] [--keep]
    python benchmarks/quantize.py FOLDER --small    # seconds: does it work?

Steps: make a published checkpoint of real shapes in bfloat16 (every tensor repeats one block of random
numbers), `unitoken convert`, `unitoken quantize`, starting alone, loading, an answer of 8 tokens, a row of an
image's codes. Each is a process of its own, and the last three load anew. FOLDER takes 31 GB at most. Every
figure is in FOLDER/figures.json as soon as it is known, and the same command goes on after the last finished
step.

`seconds` are the clock's, `core_seconds` those of all cores together: on a machine that others use, they say
more. `peak` is the largest memory in GiB, mapped files included.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

Record = Callable[[dict], None]  # takes figures of a step as soon as they are known


def model_config(name: str, layers: int | None, small: bool):
    """The model whose shapes are made up: that of configs/, with so many decoder layers, or a tiny one."""
    from unitoken_jax import config as configs
    from unitoken_jax.config_file import load_config

    model = load_config(name).model
    if small:
        model = configs.ModelConfig(
            siglip=configs.SiglipConfig(image_size=28, width=16, depth=1, heads=2, mlp=32),
            vq=configs.VQConfig(
                codes=16, embed_dim=8, latent_channels=8, base_channels=32, channel_multipliers=(1,) * 5
            ),
            decoder=configs.DecoderConfig(vocab_size=400, width=32, depth=1, heads=4, kv_heads=4, mlp=48),
        )
    decoder = dataclasses.replace(model.decoder, depth=layers or model.decoder.depth)
    return dataclasses.replace(model, decoder=decoder, sequence=configs.published_sequence())


def memory(before: float = 0.0) -> dict:
    """The process's largest memory so far in GiB, and its cores' seconds, less `before`."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))  # "VmHWM:  123 kB"
    return {"peak": int(line.split()[1]) / 2**20, "core_seconds": time.process_time() - before}


def make(record: Record, checkpoint: pathlib.Path, *model) -> None:
    """Writes the published checkpoint of a model that `model_config` is given as `model`."""
    import convert

    shutil.rmtree(checkpoint, ignore_errors=True)  # of a killed run
    convert.write_checkpoint(checkpoint, model_config(*model))


def unitoken(record: Record, verb: str, options: dict) -> None:
    """`unitoken VERB`, in this process."""
    from unitoken_jax.cli.main import main

    if code := main([verb, *(str(word) for option in options.items() for word in option)]):
        raise SystemExit(code)


def start(record: Record) -> None:
    """What every other step does before it loads a model."""
    import jax

    from unitoken_jax import UniToken

    record({"devices": len(jax.devices())})
    del UniToken


def load(record: Record, folder: pathlib.Path, quantize: str | None = None):
    """Loads a model directory."""
    import jax

    from unitoken_jax import UniToken

    began = time.monotonic()
    model = UniToken.load(folder, quantize=quantize)
    jax.block_until_ready(model.params)
    record({"load": time.monotonic() - began, "load_peak": memory()["peak"]})
    return model


def session(record: Record, folder: pathlib.Path):
    """A session of one row, of which `record` is told where its seconds have gone so far."""
    from unitoken_jax.generate.scheduler import DecodeSession
    from unitoken_jax.generate.timing import Clock

    class RecordingClock(Clock):
        def __setattr__(self, name: str, timing) -> None:  # its one attribute, set after every program's run
            super().__setattr__(name, timing)
            record(timing._asdict())

    return DecodeSession(load(record, folder), seed=0, batch=1, clock=RecordingClock())


def answer(record: Record, folder: pathlib.Path) -> None:
    """An answer of 8 tokens."""
    from unitoken_jax.generate import text

    decoding = session(record, folder)
    prompts = text.build_prompts(decoding.model, [["what is this?"]], batch=1)
    limit, sampling = text.check_settings(decoding.model, max_tokens=8)
    for written in text.write_text(decoding, prompts, [limit], sampling, yield_every=1):
        record({"tokens": len(written.tokens)})


def draw(record: Record, folder: pathlib.Path) -> None:
    """The first row of an image's codes, guided."""
    from unitoken_jax.generate import image

    decoding = session(record, folder)
    _, prompts, grammar, sampling = image.plan_drawing(decoding.model, ["a red circle"])
    # Seldom, as each call of the loop begins by gathering the codes' columns of the output layer.
    every = max(grammar.columns // 4, 1)
    for written in image.draw_codes(decoding, prompts, grammar, sampling, every):
        record({"codes": len(written.tokens)})
        if len(written.tokens) >= grammar.columns:
            return


def measured(run: Callable, arguments: tuple, record: Record) -> None:
    """Runs a step here; `core_seconds` are its own, with those of starting where the process is new."""
    before = time.process_time() if multiprocessing.parent_process() is None else 0.0
    run(record, *arguments)
    record(memory(before))


def in_a_process(run: Callable, arguments: tuple, record: Record) -> None:
    """Runs a step in a process of its own. SystemExit where that does not end well."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(run, arguments, sender.send))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        while True:
            record(receiver.recv())
    process.join()
    if process.exitcode:
        raise SystemExit(f"{run.__name__} ended with exit code {process.exitcode}")


class Figures:
    """The figures of all steps, in a JSON file. SystemExit where it is another model's."""

    def __init__(self, path: pathlib.Path, model: dict):
        self.path, self.written = path, {"model": model, "steps": {}}
        if path.exists():
            self.written = json.loads(path.read_text(encoding="utf-8"))
        if self.written["model"] != model:
            raise SystemExit(f"{path} is of {self.written['model']}, not of {model}: name another folder")

    def record(self, step: str, more: dict) -> None:
        """Adds figures of a step, and writes the file."""
        self.written["steps"].setdefault(step, {}).update(more)
        self.path.with_suffix(".part").write_text(json.dumps(self.written, indent=1) + "\n", encoding="utf-8")
        os.replace(self.path.with_suffix(".part"), self.path)

    def measure(self, name: str, run: Callable[[Record], None], makes: pathlib.Path | None) -> None:
        """Runs a step that makes a folder (None: none), unless its figures are there, and says them."""
        if "seconds" in self.written["steps"].get(name, {}):
            return
        began = time.monotonic()
        run(functools.partial(self.record, name))
        if makes is not None:
            files = (path for path in makes.rglob("*") if path.is_file())
            self.record(name, {"GB": sum(path.stat().st_size for path in files) / 1e9})
        self.record(name, {"load_average": os.getloadavg()[0], "seconds": time.monotonic() - began})
        figures = self.written["steps"][name].items()
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in figures)}", flush=True)


class Step(NamedTuple):
    """A step: `run` takes a Record and `arguments`. `makes` is the folder that it writes, `uses_up` the one
    that nothing after it needs."""

    run: Callable
    arguments: tuple
    makes: pathlib.Path | None = None
    uses_up: pathlib.Path | None = None


def steps_of(arguments: argparse.Namespace) -> dict[str, Step]:
    """The steps in order, by name."""
    folder, bits = arguments.folder, arguments.bits
    checkpoint, original, copy = (folder / name for name in ("checkpoint", "model", f"model{bits}"))
    converting = {"--checkpoint": checkpoint, "--siglip": checkpoint / "SigLIP"}
    converting |= {"--vqgan": checkpoint / "chameleon" / "tokenizer", "--out": original}
    converting |= {"--image-size": 64} if arguments.small else {}
    quantizing = {"--model": original, "--out": copy, "--bits": bits}
    steps = {
        "make": Step(make, (checkpoint, arguments.config, arguments.layers, arguments.small), checkpoint),
        "convert": Step(unitoken, ("convert", converting), original, uses_up=checkpoint),
        "quantize": Step(unitoken, ("quantize", quantizing), copy),
        "load the original": Step(load, (original, f"int{bits}")),
        "start": Step(start, (), uses_up=original),
        "load": Step(load, (copy,)),
        "answer": Step(answer, (copy,)),
        "draw": Step(draw, (copy,), uses_up=copy),
    }
    if not arguments.before:
        del steps["load the original"]
    return steps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--config", default="unitoken_7b", help="a file of configs/")
    parser.add_argument("--layers", type=int, help="of the decoder, where the disk is small")
    parser.add_argument("--small", action="store_true", help="a tiny model, all in one process")
    parser.add_argument("--before", action="store_true", help="also load the original with quantize=")
    parser.add_argument("--until", help="the last step to run (default: draw)")
    parser.add_argument("--keep", action="store_true", help="leave what the steps make there")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = {name: getattr(arguments, name) for name in ("config", "layers", "small", "bits")}
    figures = Figures(arguments.folder / "figures.json", model)
    steps, runner = steps_of(arguments), measured if arguments.small else in_a_process
    if arguments.until not in (None, *steps):
        parser.error(f"--until is {arguments.until}; expected one of {', '.join(steps)}")
    for name, step in steps.items():
        figures.measure(name, functools.partial(runner, step.run, step.arguments), step.makes)
        if step.uses_up is not None and not arguments.keep:
            shutil.rmtree(step.uses_up, ignore_errors=True)
        if name == arguments.until:
            return


if __name__ == "__main__":
    main()
