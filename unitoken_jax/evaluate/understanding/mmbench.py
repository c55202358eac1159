"""MMBench in English and Chinese: a question counts where every rotation of its options is right."""

import dataclasses
from collections import defaultdict

from unitoken_jax.evaluate.understanding.benchmark import CHOICE_COLUMNS, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.scoring import Scored, details, match_choices, mean
from unitoken_jax.evaluate.understanding.table import INDEX, Table

ROTATION = 1_000_000  # A question's circular copies are this many indices apart.


@dataclasses.dataclass(frozen=True)
class MMBench(UnderstandingBenchmark):
    """The score is the share of questions that are right in every rotation of their options."""

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """A question counts where every rotation of its options is answered right."""
        groups = defaultdict(list)
        for number, row in enumerate(table.rows):
            if not row[INDEX].isdecimal():
                raise table.fault(number, INDEX, "not a whole number, as MMBench's indices are")
            groups[int(row[INDEX]) % ROTATION].append(number)
        for question, numbers in groups.items():
            if not any(int(table.rows[number][INDEX]) == question for number in numbers):
                raise table.fault(numbers[0], INDEX, f"a rotation of question {question}, which is no row")
        matches, hits = match_choices(table, rules)
        mains = [number for number, row in enumerate(table.rows) if int(row[INDEX]) < ROTATION]
        circular = [all(hits[n] for n in groups[int(table.rows[main][INDEX])]) for main in mains]
        single = mean([hits[main] for main in mains])
        parts = details(table, mains, circular) | {"not circular": single}
        notes = []
        if len(mains) == len(hits):
            notes = ["no question has rotated copies here: this is not MMBench's circular score"]
        return Scored(mean(circular), parts, matches, hits, notes)


def _mmbench(language: str, paper: tuple[float, float]) -> MMBench:
    splits = [f"MMBench_{split}_{language}" for split in ("DEV", "TEST")]
    datasets = tuple(name + version for name in splits for version in ("", "_V11"))
    unanswered = tuple(name for name in datasets if name.startswith(splits[1]))
    return MMBench(f"MMBench_{language}", datasets, "General", CHOICE_COLUMNS, paper, unanswered=unanswered)


MMBENCH_CN = _mmbench("CN", (64.1, 62.0))
MMBENCH_EN = _mmbench("EN", (70.3, 71.1))
