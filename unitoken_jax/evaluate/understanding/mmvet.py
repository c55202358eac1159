"""MM-Vet: free answers, which only an LLM judge can score."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.prompts import Template
from unitoken_jax.evaluate.understanding.scoring import JUDGE, Scored
from unitoken_jax.evaluate.understanding.table import QUESTION, Table


@dataclasses.dataclass(frozen=True)
class MMVet(UnderstandingBenchmark):
    """Free answers: every row is left for a judge, and no score is given here."""

    needs_judge: ClassVar[bool] = True

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return row[QUESTION]

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        count = len(table.rows)
        return Scored(None, {}, [JUDGE] * count, [False] * count, [f"all {count} rows need an LLM judge"])


MM_VET = MMVet("MMVet", ("MMVet",), "TextRead", ("answer",), (None, None))
