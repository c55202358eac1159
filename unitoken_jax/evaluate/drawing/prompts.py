"""Text-to-image benchmarks: their prompt files, and the folders and names their scorers expect.

    GenEval           {line:05d}/metadata.jsonl, {line:05d}/samples/{sample:05d}.png      (line from 0)
    T2I-CompBench++   LIST/samples/{prompt}_{n:06d}.png      (n counts through the list; nothing else there)
    quickstart        as GenEval, with the quickstart's requirements as metadata

Read from github.com/djghosh13/geneval and github.com/Karine-Huang/T2I-CompBench. Scorers judge by the
original prompt, so that one is kept in names and metadata where a rewritten one is drawn.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from unitoken_jax.scenes.prompts import Requirement
from unitoken_jax.storage.atomic import write_text

DRAWN = "prompts.jsonl"
_LONGEST_NAME = 255  # bytes, on common file systems


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
class DrawingBenchmark:
    """`number` images a prompt and `guidance` (None: the model's) as in the paper's section 3.4.

    `paper`: its scores after stages II and III (Table 4).
    """

    name: str
    also: tuple[str, ...]
    number: int
    guidance: float | None
    paper: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


_GENEVAL = {
    "overall": (0.58, 0.63),
    "single object": (0.98, 0.99),
    "two objects": (0.75, 0.80),
    "counting": (0.39, 0.35),
    "colors": (0.81, 0.84),
    "position": (0.26, 0.38),
    "color attribution": (0.32, 0.39),
}
_T2I = {"color": (0.7115, 0.7833), "shape": (0.5179, 0.5847), "texture": (0.6670, 0.7315)}
DRAWING_BENCHMARKS = (
    DrawingBenchmark("GenEval", (), 4, 5.5, _GENEVAL),
    DrawingBenchmark("T2I-CompBench++", ("T2I-CompBench", "T2ICompBench"), 10, 5.0, _T2I),
    DrawingBenchmark("quickstart", (), 1, None),
)


def find_drawing_benchmark(name: str) -> DrawingBenchmark | None:
    """The text-to-image benchmark called `name`, or None."""
    for benchmark in DRAWING_BENCHMARKS:
        if name.casefold() in (known.casefold() for known in (benchmark.name, *benchmark.also)):
            return benchmark
    return None


def read_prompts(
    benchmark: DrawingBenchmark,
    path: str | os.PathLike,
    number: int,
    rewritten: str | os.PathLike | None = None,
) -> list[BenchmarkPrompt]:
    """The prompts of file `path` with the files of their `number` images.

    `rewritten`: a file of what to draw instead, one prompt a line in the same order, as text or as JSON (a
    string, or an object with "prompt"). Raises PromptError naming file and line, also where the two files
    have different numbers of prompts.
    """
    path = pathlib.Path(path)
    lines = _lines(path)
    place = _t2i if benchmark.name == "T2I-CompBench++" else _geneval
    check = _requirement if benchmark.name == "quickstart" else _tagged
    prompts = [place(path, *line, order, number, check) for order, line in enumerate(lines)]
    if rewritten is None:
        return prompts
    rewritten = pathlib.Path(rewritten)
    lines = _lines(rewritten)
    texts = [(_rewritten(rewritten, *line), f"{rewritten}:{line[0]}") for line in lines]
    if len(texts) != len(prompts):
        raise PromptError(
            f"{rewritten} has {len(texts)} prompts, {path} has {len(prompts)}: they must pair line by line"
        )
    return [
        dataclasses.replace(prompt, text=text, source=source)
        for prompt, (text, source) in zip(prompts, texts)
    ]


def write_drawn(root: pathlib.Path, prompts: Sequence[BenchmarkPrompt]) -> None:
    """Writes prompts.jsonl in `root`: what is drawn into which files, a line a prompt."""
    lines = [json.dumps({"prompt": p.text, "files": p.files}, ensure_ascii=False) + "\n" for p in prompts]
    write_text(root / DRAWN, "".join(lines))


def read_drawn(root: pathlib.Path) -> list[BenchmarkPrompt]:
    """The prompts of `write_drawn`. FileNotFoundError saying how to write them where they are not there."""
    path = root / DRAWN
    if not path.exists():
        raise FileNotFoundError(
            f"{root} holds no {DRAWN}: call the command that drew the images again, it writes the file"
        )
    prompts = []
    for number, line in _lines(path):
        try:
            found = json.loads(line)
            prompts.append(BenchmarkPrompt(found["prompt"], f"{path}:{number}", tuple(found["files"])))
        except (ValueError, KeyError, TypeError) as error:
            raise PromptError(f"{path}:{number}: expected a prompt and its files ({error!r})") from None
    return prompts


def _lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of what is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no prompt file at {path}") from None
    found = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise PromptError(f"{path}: holds no prompts")
    return found


def _geneval(
    path: pathlib.Path, line: int, text: str, order: int, number: int, check: Callable[[dict], None]
) -> BenchmarkPrompt:
    try:
        metadata = json.loads(text)
        prompt = metadata["prompt"]
        check(metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise PromptError(f"{path}:{line}: no line of this benchmark's metadata ({error!r})") from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f'{path}:{line}: "prompt" is {prompt!r}; expected what to draw')
    files = tuple(f"{order:05d}/samples/{sample:05d}.png" for sample in range(number))
    return BenchmarkPrompt(
        prompt, f"{path}:{line}", files, (f"{order:05d}/metadata.jsonl", text.strip() + "\n")
    )


def _tagged(metadata: dict) -> None:
    metadata["tag"], metadata["include"]


def _requirement(metadata: dict) -> None:
    Requirement.from_json(metadata)


def _t2i(path: pathlib.Path, line: int, text: str, order: int, number: int, _) -> BenchmarkPrompt:
    prompt = text.rstrip("\r").split("\t")[0]
    where = f"{path.stem.removesuffix('_val')}/samples"
    names = [f"{prompt}_{order * number + sample:06d}.png" for sample in range(number)]
    for mark in "/_\0":
        if mark in prompt:
            raise PromptError(
                f"{path}:{line}: {mark!r} in {prompt[:60]!r}: the benchmark's file names cannot hold it"
            )
    if len(names[-1].encode()) > _LONGEST_NAME:
        raise PromptError(f"{path}:{line}: too long for a file name: {prompt[:60]!r}...")
    return BenchmarkPrompt(prompt, f"{path}:{line}", tuple(f"{where}/{name}" for name in names))


def _rewritten(path: pathlib.Path, line: int, text: str) -> str:
    found = text.rstrip("\r")
    if found.lstrip()[:1] in ("{", '"'):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise PromptError(f"{path}:{line}: not valid JSON ({error})") from None
    if isinstance(found, dict):
        found = found.get("prompt")
    if not isinstance(found, str) or not found.strip():
        raise PromptError(f'{path}:{line}: expected a prompt, or an object with "prompt"')
    return found
