"""HallusionBench: yes-or-no questions in groups about a figure."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.prompts import Template, short_text
from unitoken_jax.evaluate.understanding.scoring import Scored, match_yes_nos, mean, rows_by_value
from unitoken_jax.evaluate.understanding.table import INDEX, Table


@dataclasses.dataclass(frozen=True)
class HallusionBench(UnderstandingBenchmark):
    """The score is aAcc, the share of right answers; fAcc and qAcc stand beside it."""

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return short_text(row, template)

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """The three accuracies, of all rows and, as in VLMEvalKit, of each value of both category columns."""
        matches, hits = match_yes_nos(table, rules)
        parts = _accuracies(table, range(len(hits)), hits)
        parts["mean of the three"] = sum(parts.values()) / 3
        for column in ("category", "l2-category"):
            for name, numbers in rows_by_value(table, column, range(len(hits))).items():
                found = _accuracies(table, numbers, hits)
                parts |= {f"{column}: {name}, {accuracy}": value for accuracy, value in found.items()}
        return Scored(
            parts["aAcc"], parts, matches, hits, ["the score is aAcc; the paper does not say which"]
        )

    def remarks(self, parts: Mapping[str, float]) -> list[str]:
        return [f"{name} {parts[name]:.1f}" for name in ("fAcc", "qAcc")]


def _accuracies(table: Table, numbers: Sequence[int], hits: Sequence[bool]) -> dict[str, float]:
    """aAcc: of questions; fAcc: of figures, qAcc: of question pairs, with everything about them right.

    Of the rows `numbers`; `hits` are of all rows. TableError for an index that names no group.
    """
    figures, questions = defaultdict(list), defaultdict(list)
    for number in numbers:
        row = table.rows[number]
        fields = row[INDEX].split("_")
        if len(fields) < 6:
            raise table.fault(number, INDEX, "expected at least six parts between underscores")
        group, figure, question = fields[3:6]
        figures[row["l2-category"], group, figure].append(hits[number])
        questions[row["l2-category"], group, question].append(hits[number])
    return {
        "aAcc": mean([hits[number] for number in numbers]),
        "fAcc": mean([all(group) for group in figures.values()]),
        "qAcc": mean([all(group) for group in questions.values()]),
    }


HALLUSION_BENCH = HallusionBench(
    "HallusionBench", ("HallusionBench",), "General", ("answer", "l2-category"), (49.6, 57.8)
)
