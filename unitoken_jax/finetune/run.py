"""`unitoken finetune`: from the user's files to an adapter or a model, and what it has learnt.

    config.py                      every setting; `unitoken train --config config.py` repeats the run
    finetune.json                  what was asked for
    rehearsal/                     what the model drew and answered before (`rehearsal.py`)
    codes/                         VQ codes of all images
    config.json, checkpoints/ ...  the run (`train.loop`); samples/ has held-out answers and images on the way
    adapter/ or model/             the result: of the step with the smallest held-out loss
    before_after.png, report.html, loss_curves.png, summary.json

The same call goes on with what is there, to the bit as if nothing had stopped it.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence

from unitoken_jax.config import Config
from unitoken_jax.config_file import format_config, load_config
from unitoken_jax.data.loader import Validation
from unitoken_jax.finetune import report
from unitoken_jax.finetune.choose import CODES, Choices, choose, memory_of, seconds_of
from unitoken_jax.finetune.options import FinetuneOptions
from unitoken_jax.finetune.rehearsal import FILE, FOLDER, default_images, write_rehearsal
from unitoken_jax.generate.runtime import Runtime
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import absolute
from unitoken_jax.train.checkpoint import differing_settings
from unitoken_jax.train.logs.metrics import clock
from unitoken_jax.train.logs.samples import first_of, prompts_and_questions

CONFIG, OPTIONS, SUMMARY = "config.py", "finetune.json", "summary.json"


def finetune(
    options: FinetuneOptions,
    out: str | os.PathLike,
    *,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict:
    """Fine-tunes as `options` say, in directory `out`, and returns what it writes to summary.json.

    Args:
        options: what the user asks for.
        out: the run's directory; new, empty, or one where the same call was stopped.
        overrides: `--config.a.b=c`, which count after all choices.
        dry_run: only say what would be done, with memory and time; nothing is written in `out`.
        say: gets each line for the terminal.
    Raises as `choose` before anything slow, ValueError where `out` holds something else, and as `train`.
    """
    folder = absolute(out)
    asked = _asked(options, overrides)
    config = _earlier(folder, asked)
    if config is None:
        choices = choose(options, folder, overrides)
        for line in describe(choices, options, pathlib.Path(out)):
            say(line)
        if dry_run:
            return {}
        config = choices.config
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, f"# Written by `unitoken finetune`.\n\n\n{format_config(config)}")
        write_text(folder / OPTIONS, json.dumps(asked, indent=1) + "\n")  # last: says that both are there
    else:
        say(f"going on with {out}, as its {CONFIG} says")
        if dry_run:
            return {}
    summary = _run(config, options, folder)
    for line in report.closing_lines(config, pathlib.Path(out), summary):
        say(line)
    return summary


def _run(config: Config, options: FinetuneOptions, folder: pathlib.Path) -> dict:
    """Codes, training, report."""
    from unitoken_jax.train.loop import train

    start = time.monotonic()
    _prepare(config, options, folder)
    train(config, folder, progress="finetune")
    summary = report.write_report(config, options.model, folder)
    summary["minutes"] = round((time.monotonic() - start) / 60, 2)
    write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def describe(choices: Choices, options: FinetuneOptions, folder: pathlib.Path) -> list[str]:
    """What will be done, for the terminal: every choice with its reason and the options that change it."""
    rows = [(line.name, line.value, line.reason, line.options) for line in choices.lines]
    need, limit = memory_of(choices.plan)
    available = f"of {limit / 2**30:.1f} GiB" if limit < float("inf") else "of an unknown amount"
    seconds = seconds_of(choices.plan) * choices.config.train.steps
    rows.append(("memory", f"{need / 2**30:.1f} GiB a device", available, "--examples, --frozen-dtype"))
    rows.append(("time", f"about {clock(seconds)}", "training alone, by its FLOPs", "--steps, --epochs"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{options.model} learns from {', '.join(options.data)}; the result goes to {folder}", ""]
    for row in rows:
        lines.append("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + "  " + row[3])
    return [*lines, "", "(any other setting: --config.section.key=value)"]


def _asked(options: FinetuneOptions, overrides: Sequence[str]) -> dict:
    """What tells one fine-tuning from another, in JSON's types."""
    asked = {**dataclasses.asdict(options), "overrides": list(overrides)}
    return json.loads(json.dumps(asked))


def _earlier(folder: pathlib.Path, asked: dict) -> Config | None:
    """The config of the run that `folder` holds; None where there is none yet.

    Raises ValueError where it holds another fine-tuning, naming what differs, or something else.
    """
    path = folder / OPTIONS
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty and holds no fine-tuning: choose another --out")
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): remove {folder}, or name another --out"
        ) from error
    if lines := differing_settings(stored, asked):
        raise ValueError(
            f"{folder} holds another fine-tuning:\n  "
            + "\n  ".join(lines)
            + "\nChoose another --out, or remove it"
        )
    return load_config(str(folder / CONFIG))


def _prepare(config: Config, options: FinetuneOptions, folder: pathlib.Path) -> None:
    """Writes the rehearsal, and the VQ codes of all images that the run reads, where they are not there."""
    from unitoken_jax.generate.tokenize import tokenize

    if config.data.codes != "offline":
        return
    model = Runtime.load(options.model)
    sources = (*config.data.sources, *config.data.validation)
    rehearsal = folder / FOLDER / FILE
    if any(source.path == str(rehearsal) for source in sources):
        number = options.rehearsal or default_images(model.config, model.manifest, model.params)
        write_rehearsal(model, folder, number, _questions(config, model.tokenizer), options.seed)
    skip = config.data.on_error == "skip"  # then the source reports an image that cannot be read
    for source in {source.path: source for source in sources}.values():
        whole = dataclasses.replace(source, held_out=0.0, part="all", codes="")
        tokenize(model, whole, folder / CODES, on_error=(lambda error: None) if skip else None)


def _questions(config: Config, tokenizer: Tokenizer) -> list[str]:
    """Questions that the data asks about images, without their marks of images."""
    first = dataclasses.replace(config.data, validation=config.data.sources[:-1], codes="online")
    sources = Validation(first, config.model, tokenizer).sources
    _, questions = prompts_and_questions(first_of(sources), len(sources) * 16, lambda question: True)
    about_images = [question.text for question in questions if question.conversation.images]
    texts = dict.fromkeys(text.replace("<|image|>", "").strip() for text in about_images)
    return [text for text in texts if text]
