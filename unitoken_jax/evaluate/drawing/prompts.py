"""Prompts of text-to-image benchmarks: reading lines, pairing rewritten ones, listing what was drawn."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

from unitoken_jax.evaluate.faults import named, parse_json, undecodable_line
from unitoken_jax.storage.atomic import write_text

DRAWN = "prompts.jsonl"


class PromptError(ValueError):
    """A prompt file that cannot be used; the message begins with file:line."""


@dataclasses.dataclass(frozen=True)
class BenchmarkPrompt:
    """`text` is drawn into `files`; `metadata` is (file, content) beside them, all below the run's folder.

    `source` ("file:line") is where `text` comes from.
    """

    text: str
    source: str
    files: tuple[str, ...]
    metadata: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """A line of a prompt file: `number` counts the file's lines from 1, `order` its prompts from 0."""

    path: pathlib.Path
    number: int
    order: int
    text: str

    @property
    def source(self) -> str:
        return f"{self.path}:{self.number}"


def read_lines(path: pathlib.Path) -> list[PromptLine]:
    """The lines of `path` that are not blank. Raises PromptError, or FileNotFoundError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = undecodable_line(path)
        raise PromptError(f"{path}: not UTF-8 ({path}:{line}: {error.reason}); save it as UTF-8") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no prompt file at {path}") from None
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise PromptError(f"{path}: holds no prompts")
    return [PromptLine(path, number, order, line) for order, (number, line) in enumerate(numbered)]


def numbered_prompt(line: PromptLine, number: int, check: Callable[[dict], None]) -> BenchmarkPrompt:
    """The prompt of a line of metadata, its `number` images in a numbered folder beside the metadata.

    `check` raises whatever it likes for metadata that the scorer could not use; then, and where the line
    holds no prompt, PromptError is raised.
    """
    with named(PromptError, line.source, "no line of this benchmark's metadata"):
        metadata = parse_json(line.text)
        prompt = metadata["prompt"]
        check(metadata)
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f'{line.source}: "prompt" is {prompt!r}; expected what to draw')
    folder = f"{line.order:05d}"
    files = tuple(f"{folder}/samples/{sample:05d}.png" for sample in range(number))
    return BenchmarkPrompt(prompt, line.source, files, (f"{folder}/metadata.jsonl", line.text.strip() + "\n"))


def with_rewritten(
    prompts: Sequence[BenchmarkPrompt], data: str | os.PathLike, rewritten: str | os.PathLike
) -> list[BenchmarkPrompt]:
    """`prompts` of file `data` with the texts of file `rewritten`; files and metadata stay.

    Scorers judge by the original prompt, so that one is kept in names and metadata.
    """
    lines = read_lines(pathlib.Path(rewritten))
    texts = [_rewritten_text(line) for line in lines]
    if len(texts) != len(prompts):
        raise PromptError(
            f"{rewritten} has {len(texts)} prompts, {data} has {len(prompts)}: they must pair line by line"
        )
    return [
        dataclasses.replace(prompt, text=text, source=line.source)
        for prompt, text, line in zip(prompts, texts, lines)
    ]


def _rewritten_text(line: PromptLine) -> str:
    """The prompt in a line: text, a JSON string, or a JSON object with "prompt". PromptError without one."""
    text = line.text.rstrip("\r")
    if text.lstrip()[:1] in ("{", '"'):
        with named(PromptError, line.source, "not valid JSON"):
            text = parse_json(text)
    if isinstance(text, dict):
        text = text.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f'{line.source}: expected a prompt, or an object with "prompt"')
    return text


def write_drawn(run_folder: pathlib.Path, prompts: Sequence[BenchmarkPrompt]) -> None:
    """Writes prompts.jsonl in `run_folder`: what is drawn into which files, a line a prompt."""
    rows = ({"prompt": prompt.text, "files": prompt.files} for prompt in prompts)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(run_folder / DRAWN, text)


def read_drawn(run_folder: pathlib.Path) -> list[BenchmarkPrompt]:
    """The prompts of `write_drawn`. FileNotFoundError saying how to write them where they are not there."""
    path = run_folder / DRAWN
    if not path.exists():
        raise FileNotFoundError(
            f"{run_folder} holds no {DRAWN}: call the command that drew the images again, it writes the file"
        )
    prompts = []
    for line in read_lines(path):
        with named(PromptError, line.source, "expected a prompt and its files"):
            row = parse_json(line.text)
            prompt, files = row["prompt"], row["files"]
            if not isinstance(prompt, str) or not files or not all(isinstance(file, str) for file in files):
                raise ValueError("a value of another type")
            prompts.append(BenchmarkPrompt(prompt, line.source, tuple(files)))
    return prompts
