"""What a benchmark is: an object that can read its file, run a model on it, and score what the model made.

A benchmark that is new is one object in one file: subclass `understanding.benchmark.UnderstandingBenchmark`
(questions about images, scored from text) or `drawing.benchmark.DrawingBenchmark` (images drawn from
prompts), fill in the names and the paper's figures, override the one or two methods that are its own, and
list the object in `registry.py`. Recipes, resuming, reports and the command line then work with it: nothing
else asks which benchmark it has.
"""

import abc
import dataclasses
import os
import pathlib
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class Benchmark(abc.ABC):
    """The interface that both kinds of benchmark share.

    `verb` is the word of `unitoken evaluate` that runs it: "run" for questions, "draw" for images. `packaged`
    is its file where the package contains it.
    """

    verb: ClassVar[str]
    packaged: ClassVar[pathlib.Path | None] = None
    name: str

    @property
    @abc.abstractmethod
    def aliases(self) -> tuple[str, ...]:
        """Further names that a user may give, compared without regard to case."""

    def data_file(self, data: str | os.PathLike | None) -> str | os.PathLike:
        """`data`, or where that is None the file in the package. ValueError where there is none."""
        file = self.packaged if data is None else data
        if file is None:
            raise ValueError(f"{self.name} needs --data FILE, its file as its authors publish it")
        return file

    @abc.abstractmethod
    def read(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the benchmark's file into examples. Raises ValueError naming file and line."""

    @abc.abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Gives every example to a model; what was done before a kill is not done again."""

    @abc.abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> Any:
        """Scores what a run left. Needs neither a model nor jax."""
