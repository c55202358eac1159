"""OCRBench: whether a right reading stands in the answer, in points of 1,000."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules, reads_right
from unitoken_jax.evaluate.understanding.prompts import Template, short_text
from unitoken_jax.evaluate.understanding.scoring import Scored, by_column, mean
from unitoken_jax.evaluate.understanding.table import PREDICTION, Table, literal_list


@dataclasses.dataclass(frozen=True)
class OcrBench(UnderstandingBenchmark):
    """The score is the number of right readings, of 1,000."""

    answers_are_choices: ClassVar[bool] = False

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return short_text(row, template)

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """The number of right readings, scaled to 1,000 rows."""
        readings = [literal_list(table, number, "answer") for number in range(len(table.rows))]
        for number, answers in enumerate(readings):
            if not all(answer.strip() for answer in answers):
                raise table.fault(number, "answer", f"{answers}: a blank reading stands in every prediction")
        hits = [
            reads_right(answers, row[PREDICTION], row["category"])
            for answers, row in zip(readings, table.rows)
        ]
        notes = [] if len(hits) == 1000 else [f"{len(hits)} rows: their share of right ones, times 1000"]
        matches = [row[PREDICTION] for row in table.rows]
        return Scored(
            10 * mean(hits), by_column(table, "category", range(len(hits)), hits), matches, hits, notes
        )


OCR_BENCH = OcrBench(
    "OCRBench", ("OCRBench",), "TextRead", ("answer", "category"), (634, 757), per_point=10.0
)
