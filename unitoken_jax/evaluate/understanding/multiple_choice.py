"""MMStar, SEED-Bench and AI2D: plain accuracy on multiple-choice questions."""

import dataclasses

from unitoken_jax.evaluate.understanding.benchmark import CHOICE_COLUMNS, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.scoring import Scored, details, match_choices, mean
from unitoken_jax.evaluate.understanding.table import Table


@dataclasses.dataclass(frozen=True)
class MultipleChoice(UnderstandingBenchmark):
    """The score is the share of rows whose right option was named."""

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        matches, hits = match_choices(table, rules)
        return Scored(mean(hits), details(table, range(len(hits)), hits), matches, hits)


MMSTAR = MultipleChoice("MMStar", ("MMStar",), "General", CHOICE_COLUMNS, (45.2, 46.1))
SEED = MultipleChoice("SEED", ("SEEDBench_IMG",), "General", CHOICE_COLUMNS, (70.3, 69.9))
AI2D = MultipleChoice("AI2D", ("AI2D_TEST", "AI2D_TEST_NO_MASK"), "TextRead", CHOICE_COLUMNS, (67.6, 68.7))
