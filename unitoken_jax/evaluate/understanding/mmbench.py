"""MMBench in English and Chinese: a question counts where every rotation of its options is right.

Which rows are one question's says the column `g_index`, where the file has one, else the index modulo
1,000,000, as in VLMEvalKit (`mcq_circular_eval`, the same in March and in August 2025).
"""

import dataclasses
import re
from collections import defaultdict

from unitoken_jax.evaluate.understanding.benchmark import CHOICE_COLUMNS, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.scoring import Scored, details, match_choices, mean
from unitoken_jax.evaluate.understanding.table import INDEX, Table

GROUP = "g_index"
ROTATION = 1_000_000  # A question's circular copies are this many indices apart.
_WHOLE = re.compile(r"(\d{1,18})(\.0*)?")  # as pandas may have written it; 18 digits are plenty


@dataclasses.dataclass(frozen=True)
class MMBench(UnderstandingBenchmark):
    """The score is the share of questions that are right in every rotation of their options."""

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """A question counts where every rotation of its options is answered right."""
        indices = [_whole(table, number, INDEX) for number in range(len(table.rows))]
        if GROUP in table.columns:
            questions = [_whole(table, number, GROUP) for number in range(len(table.rows))]
        else:
            questions = [index % ROTATION for index in indices]
        groups = defaultdict(list)
        for number, question in enumerate(questions):
            groups[question].append(number)
        for question, numbers in groups.items():
            if not any(indices[number] == question for number in numbers):
                raise table.fault(numbers[0], INDEX, f"a rotation of question {question}, which is no row")
        matches, hits = match_choices(table, rules)
        mains = [number for number, question in enumerate(questions) if indices[number] == question]
        circular = [all(hits[number] for number in groups[indices[main]]) for main in mains]
        single = mean([hits[main] for main in mains])
        parts = details(table, mains, circular) | {"not circular": single}
        notes = []
        if len(mains) == len(hits):
            notes = ["no question has rotated copies here: this is not MMBench's circular score"]
        return Scored(mean(circular), parts, matches, hits, notes)


def _whole(table: Table, number: int, column: str) -> int:
    """The whole number in `column` of row `number`. TableError where there is none."""
    match = _WHOLE.fullmatch(table.rows[number][column].strip())
    if match is None:
        raise table.fault(number, column, "not a whole number, as MMBench's indices are")
    return int(match[1])


def _mmbench(language: str, paper: tuple[float, float]) -> MMBench:
    splits = [f"MMBench_{split}_{language}" for split in ("DEV", "TEST")]
    datasets = tuple(name + version for name in splits for version in ("", "_V11"))
    unanswered = tuple(name for name in datasets if name.startswith(splits[1]))
    return MMBench(f"MMBench_{language}", datasets, "General", CHOICE_COLUMNS, paper, unanswered=unanswered)


MMBENCH_CN = _mmbench("CN", (64.1, 62.0))
MMBENCH_EN = _mmbench("EN", (70.3, 71.1))
