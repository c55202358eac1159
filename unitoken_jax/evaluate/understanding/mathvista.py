"""MathVista: its score needs an LLM judge; what can be told without one is a lower bound."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules, match_option
from unitoken_jax.evaluate.understanding.prompts import Template
from unitoken_jax.evaluate.understanding.scoring import JUDGE, Scored, by_column, mean
from unitoken_jax.evaluate.understanding.table import PREDICTION, QUESTION, Table, literal_list

LOWER_BOUND = "no-judge, a lower bound"  # Name of the score over rows that need no judge.


@dataclasses.dataclass(frozen=True)
class MathVista(UnderstandingBenchmark):
    """Options are matched, and predictions that are a number and nothing else; the rest is for a judge.

    A right integer 0 counts: VLMEvalKit's check takes that 0 for "nothing found" and asks its judge.
    """

    needs_judge: ClassVar[bool] = True

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return row[QUESTION]  # It already says how to answer.

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """Options are matched, numbers compared; whatever else was predicted is left for a judge."""
        outcomes = [_match_row(table, number, rules) for number in range(len(table.rows))]
        matches, hits = [match for match, _ in outcomes], [hit for _, hit in outcomes]
        left = matches.count(JUDGE)
        parts = {LOWER_BOUND: mean(hits)} | by_column(table, "task", range(len(hits)), hits)
        return Scored(None, parts, matches, hits, [f"{left} of {len(hits)} rows need an LLM judge"])

    def remarks(self, parts: Mapping[str, float]) -> list[str]:
        return [f"{LOWER_BOUND}: {parts[LOWER_BOUND]:.1f}"] if LOWER_BOUND in parts else []


MATH_VISTA = MathVista(
    "MathVista",
    ("MathVista_MINI",),
    "General",
    ("answer", "question_type", "answer_type", "answer_option", "choices"),
    (41.6, 38.5),
)


def _match_row(table: Table, number: int, rules: MatchingRules) -> tuple[str, bool]:
    """(what row `number`'s prediction is taken for, or JUDGE; whether that is right).

    Raises TableError for a row whose type or right answer is not MathVista's.
    """
    row = table.rows[number]
    if row["question_type"] == "multi_choice":
        choices = literal_list(table, number, "choices")
        options = {chr(ord("A") + i): text for i, text in enumerate(choices)}
        gold = row["answer_option"]
        if gold not in options:
            raise table.fault(number, "answer_option", f"{gold!r} is none of {', '.join(options)}")
        match = match_option(row[PREDICTION], options, rules)
        return match or JUDGE, match == gold
    if row["question_type"] != "free_form":
        raise table.fault(
            number, "question_type", f"{row['question_type']!r}; expected multi_choice or free_form"
        )
    number_types: dict[str, Callable] = {"integer": int, "float": float}
    if row["answer_type"] not in number_types:
        return JUDGE, False
    number_type = number_types[row["answer_type"]]
    try:
        gold = number_type(row["answer"])
    except ValueError:
        raise table.fault(number, "answer", f"{row['answer']!r} is no {row['answer_type']}") from None
    try:
        hit = number_type(row[PREDICTION]) == gold
    except ValueError:
        hit = False
    return (row[PREDICTION], True) if hit else (JUDGE, False)
