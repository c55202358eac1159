"""HallusionBench: yes-or-no questions in groups about a figure."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.prompts import Template, short_text
from unitoken_jax.evaluate.understanding.scoring import Scored, match_yes_nos, mean
from unitoken_jax.evaluate.understanding.table import INDEX, Table


@dataclasses.dataclass(frozen=True)
class HallusionBench(UnderstandingBenchmark):
    """The score is aAcc, the share of right answers; fAcc and qAcc stand beside it."""

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return short_text(row, template)

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """aAcc: questions; fAcc: figures, qAcc: question pairs, with everything about them right."""
        matches, hits = match_yes_nos(table, rules)
        figures, questions = defaultdict(list), defaultdict(list)
        for number, row in enumerate(table.rows):
            fields = row[INDEX].split("_")
            if len(fields) < 6:
                raise table.fault(number, INDEX, "expected at least six parts between underscores")
            group, figure, question = fields[3:6]
            figures[row["l2-category"], group, figure].append(hits[number])
            questions[row["l2-category"], group, question].append(hits[number])
        parts = {
            "aAcc": mean(hits),
            "fAcc": mean([all(group) for group in figures.values()]),
            "qAcc": mean([all(group) for group in questions.values()]),
        }
        parts["mean of the three"] = sum(parts.values()) / 3
        return Scored(
            parts["aAcc"], parts, matches, hits, ["the score is aAcc; the paper does not say which"]
        )

    def remarks(self, parts: Mapping[str, float]) -> list[str]:
        return [f"{name} {parts[name]:.1f}" for name in ("fAcc", "qAcc")]


HALLUSION_BENCH = HallusionBench(
    "HallusionBench", ("HallusionBench",), "General", ("answer", "l2-category"), (49.6, 57.8)
)
