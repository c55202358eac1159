"""A benchmark of images to draw: its prompt file, where its scorer looks for images, and its scores."""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from unitoken_jax.evaluate.benchmark import Benchmark
from unitoken_jax.evaluate.drawing.images import draw_missing
from unitoken_jax.evaluate.drawing.prompts import BenchmarkPrompt, PromptLine, read_lines, with_rewritten
from unitoken_jax.evaluate.faults import undecodable_line

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken


class ScoresError(ValueError):
    """A scorer's file that cannot be used; the message names the place and what is wrong."""


@dataclasses.dataclass(frozen=True)
class DrawingBenchmark(Benchmark):
    """A text-to-image benchmark; its own rules are `prompt_at` and `score`.

    `also`: other spellings of its name; `number` images a prompt and `guidance` (None: the model's) as in the
    paper's section 3.4; `paper`: its scores after stages II and III (Table 4).
    """

    verb: ClassVar[str] = "draw"
    scored_here: ClassVar[bool] = False  # whether `score` needs no file that another program wrote

    also: tuple[str, ...]
    number: int
    guidance: float | None
    paper: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.also

    @abc.abstractmethod
    def prompt_at(self, line: PromptLine, number: int) -> BenchmarkPrompt:
        """The prompt in `line` with the files of its `number` images. Raises PromptError for a bad line."""

    def read(
        self, data: str | os.PathLike, number: int | None = None, rewritten: str | os.PathLike | None = None
    ) -> list[BenchmarkPrompt]:
        """The prompts of file `data` with the files of their `number` images (None: as many as usual).

        `rewritten`: a file of what to draw instead, one prompt a line in the same order, as text or as JSON
        (a string, or an object with "prompt"). Raises PromptError naming file and line, also where the two
        files have different numbers of prompts.
        """
        number = self.number if number is None else number
        prompts = [self.prompt_at(line, number) for line in read_lines(pathlib.Path(data))]
        return prompts if rewritten is None else with_rewritten(prompts, data, rewritten)

    def run_folder(self, data: str | os.PathLike, out: pathlib.Path) -> pathlib.Path:
        """Where a run of prompt file `data` keeps its recipe and report: `out`, or a folder in it."""
        return out

    def image_root(self, run_folder: pathlib.Path) -> pathlib.Path:
        """The folder that the prompts' `files` are below: the inverse of `run_folder`."""
        return run_folder

    def run(
        self,
        model: "UniToken",
        prompts: Sequence[BenchmarkPrompt],
        out: pathlib.Path,
        staging: pathlib.Path,
        settings: Mapping,
    ) -> int:
        """Draws what is missing of the prompts' images; returns the number of images drawn.

        Args:
            model: what draws.
            prompts: as `read` gives them.
            out: the folder that their `files` are below.
            staging: the file that each image is first written to.
            settings: the recipe's.
        """
        return draw_missing(model, prompts, out, staging, settings)

    @abc.abstractmethod
    def score(self, run_folder: pathlib.Path, scores: pathlib.Path | None = None) -> dict:
        """{"overall", "categories", "notes", "images"} of the images in `run_folder`.

        `scores` is the file that the authors' scorer wrote about them; None where `scored_here`. Raises
        ScoresError where it is about other images, ValueError where it is missing or out of place.
        """

    def needs_scorer(self) -> ValueError:
        """The error for `score` without a file of scores."""
        return ValueError(
            f"{self.name} is scored by its authors' own scorer, which needs detectors: run it on the "
            "folder, and give the file it writes as --scores FILE, with --out FOLDER"
        )


def read_scores(scores: pathlib.Path) -> str:
    """The text of a scorer's file. Raises FileNotFoundError, or ScoresError where it is not UTF-8."""
    try:
        return scores.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no scores at {scores}") from None
    except UnicodeDecodeError as error:
        line = undecodable_line(scores)
        raise ScoresError(f"{scores}: not UTF-8 ({scores}:{line}: {error.reason})") from None


def check_complete(scores: pathlib.Path, missing: Sequence[str], total: int) -> None:
    """Raises ScoresError where a scorer's file lacks the images `missing` of a run's `total`."""
    if missing:
        raise ScoresError(
            f"{scores} lacks {len(missing)} of {total} images, the first is {missing[0]}: run the "
            "scorer on the whole folder"
        )
