"""Questions about the small world, whose file the package contains: options, yes or no, and open answers."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules, match_option, match_yes_no
from unitoken_jax.evaluate.understanding.prompts import Template, choice_text, options_of
from unitoken_jax.evaluate.understanding.scoring import Scored, checked_options, mean, rows_by_value
from unitoken_jax.evaluate.understanding.table import PREDICTION, QUESTION, Table
from unitoken_jax.scenes.benchmark_files import QUESTIONS_FILE
from unitoken_jax.scenes.questions import is_right


@dataclasses.dataclass(frozen=True)
class Scenes(UnderstandingBenchmark):
    """The score is the share of right answers; those of both averages and of each kind stand beside it.

    Options are matched as MMStar's, yes and no as MME's. An open answer, a caption or digits, must be the
    right one word for word: the language of the small world has one sentence for each scene.
    """

    packaged: ClassVar[pathlib.Path | None] = QUESTIONS_FILE

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        """The question with its options; one without says itself how to answer."""
        return choice_text(row, template) if options_of(row) else row[QUESTION]

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        numbers = range(len(table.rows))
        matches = [_match(table, number, rules) for number in numbers]
        hits = [match == row["answer"] for match, row in zip(matches, table.rows)]
        parts = {
            name: mean([hits[number] for number in group])
            for column in ("l2-category", "category")
            for name, group in rows_by_value(table, column, numbers).items()
        }
        return Scored(mean(hits), parts, matches, hits)


SCENES = Scenes("Scenes", ("Scenes",), None, ("answer", "category"), (None, None))


def _match(table: Table, number: int, rules: MatchingRules) -> str | None:
    """What row `number`'s prediction is taken for, None for nothing. TableError where it has no answer."""
    row = table.rows[number]
    answer, prediction = row["answer"], row[PREDICTION]
    if not answer:
        raise table.fault(number, "answer", "empty")
    if options_of(row):
        return match_option(prediction, checked_options(table, number), rules)
    if answer in ("Yes", "No"):
        return match_yes_no(prediction, rules)
    return answer if is_right(prediction, answer) else prediction.strip() or None
