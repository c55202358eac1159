"""A benchmark of questions about images: what it asks, and what its answers are worth.

Columns and data set names are VLMEvalKit's (github.com/open-compass/VLMEvalKit); the paper's scores are
Tables 3, 4 and 6 of arXiv 2504.04423.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from PIL import Image

from unitoken_jax.evaluate.benchmark import Benchmark
from unitoken_jax.evaluate.understanding.answering import answer_rows
from unitoken_jax.evaluate.understanding.matching import PAPER_RULES, MatchingRules
from unitoken_jax.evaluate.understanding.prompts import Template, choice_text
from unitoken_jax.evaluate.understanding.scoring import Scored
from unitoken_jax.evaluate.understanding.table import (
    IMAGE,
    PREDICTION,
    QUESTION,
    Table,
    decode_image,
    read_table,
    row_images,
)
from unitoken_jax.sequence.conversation import Conversation, Turn

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken

Group = Literal["General", "TextRead"]
CHOICE_COLUMNS = ("A", "B", "answer")


@dataclasses.dataclass(frozen=True)
class UnderstandingBenchmark(Benchmark):
    """A benchmark of questions; its own rules are `score_answers`, and `question_text` if it asks otherwise.

    Args:
        datasets: VLMEvalKit's names of its files, the usual one first.
        group: the average of the paper's tables that it enters; None for none of them.
        columns: those it needs besides `index`, `question` and `image`.
        paper: the scores of UniToken after stages II and III; None where the paper has none.
        per_point: what its score is divided by to lie in 0..100.
        unanswered: the data sets whose public file holds no answers, as they go to the benchmark's server.
    """

    verb: ClassVar[str] = "run"
    needs_judge: ClassVar[bool] = False  # Whether the benchmark's own score needs an LLM judge.
    answers_are_choices: ClassVar[bool] = True  # Whether counting equal answers makes sense.

    datasets: tuple[str, ...]
    group: Group | None
    columns: tuple[str, ...]
    paper: tuple[float | None, float | None]
    per_point: float = 1.0
    unanswered: tuple[str, ...] = ()

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.datasets

    def needed_columns(self, dataset: str) -> tuple[str, ...]:
        """The columns besides index, question and image that the file of `dataset` must have."""
        absent = ("answer",) if dataset in self.unanswered else ()
        return tuple(column for column in self.columns if column not in absent)

    def read(self, data: str | os.PathLike, dataset: str | None = None, images: bool = True) -> Table:
        """The questions of file `data`, which is VLMEvalKit's `dataset` (None: the usual one).

        `images` False leaves out the large column of images, for scoring. Raises TableError naming the place.
        """
        columns = (QUESTION, *([IMAGE] if images else []), *self.needed_columns(dataset or self.datasets[0]))
        return read_table(data, columns, images=images)

    def read_predictions(self, predictions: str | os.PathLike, dataset: str | None = None) -> Table:
        """A file of predictions that holds the right answers too, as `run_benchmark` and VLMEvalKit write."""
        columns = (PREDICTION, *self.needed_columns(dataset or self.datasets[0]))
        return read_table(predictions, columns, images=False)

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        """The question as it is put, without its images; here with its options."""
        return choice_text(row, template)

    def question_parts(
        self, table: Table, number: int, images: Sequence[Image.Image], template: Template
    ) -> list[str | Image.Image]:
        """Row `number`'s images and text in reading order; images first."""
        return [*images, self.question_text(table.rows[number], template)]

    def conversation(
        self, table: Table, cells: list[list[str]], template: Template, number: int
    ) -> Conversation:
        """Row `number` as a question to the model; `cells` is `row_images(table)`."""
        images = [decode_image(table, number, text) for text in cells[number]]
        # Not by make_conversation: a text that spells an image's mark is text here, whatever it says.
        question = Turn("question", tuple(self.question_parts(table, number, images, template)))
        return Conversation((question,), table.location(number))

    def run(
        self, model: "UniToken", table: Table, template: Template, journal: pathlib.Path, recipe: Mapping
    ) -> list[tuple[str, bool]]:
        """Asks `model` about every row: (answer, whether the model ended it).

        Args:
            model: what answers.
            table: as `read` gives it.
            template: the wording of questions.
            journal: the file that keeps answers as they come, so that a killed run goes on.
            recipe: the run's, whose `settings` say how the model answers.
        """
        ask = functools.partial(self.conversation, table, row_images(table), template)
        return answer_rows(model, ask, len(table.rows), journal, recipe)

    def score(self, table: Table, rules: MatchingRules = PAPER_RULES) -> Scored:
        """Scores the predictions of `table` by `rules`. Raises TableError for a row that cannot be judged."""
        if "answer" not in table.columns:
            note = "the file has no answers: hand the predictions to the benchmark's server"
            count = len(table.rows)
            return Scored(None, {}, [None] * count, [False] * count, [note])
        return self.score_answers(table, rules)

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """Scores a table whose rows have `answer` and `prediction`, by the benchmark's own rules.

        `rules` say what a prediction is taken for.
        """
        raise NotImplementedError(f"{self.name} does not say how answers are scored")

    def remarks(self, parts: Mapping[str, float]) -> list[str]:
        """What the report says of a result whose parts are `parts`, besides its notes."""
        return []
