"""What scoring rules share: the outcome they return, and matching over a table's rows.

A gold answer that its benchmark cannot mean is an error that names the row: a wrong score would be worse.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

from unitoken_jax.evaluate.understanding.matching import MatchingRules, match_option, match_yes_no
from unitoken_jax.evaluate.understanding.prompts import options_of
from unitoken_jax.evaluate.understanding.table import PREDICTION, Table

JUDGE = "judge"  # What a row's match says where only an LLM judge can tell.


@dataclasses.dataclass(frozen=True)
class Scored:
    """A benchmark's outcome.

    Args:
        score: as the paper's tables count it; None where the rows do not decide it.
        parts: other scores by name, such as those of categories, of which it is made or which explain it.
        matches: what each row's prediction was taken for, JUDGE, or None for nothing.
        hits: whether each match is right.
        notes: sentences for the report.
    """

    score: float | None
    parts: dict[str, float]
    matches: Sequence[str | None]
    hits: Sequence[bool]
    notes: list[str] = dataclasses.field(default_factory=list)


def mean(values: Sequence[float]) -> float:
    """The mean of `values` (truths: their share) in percent."""
    return 100 * sum(values) / len(values)


def by_column(table: Table, column: str, numbers: Sequence[int], hits: Sequence[bool]) -> dict[str, float]:
    """Percent of `hits` (one a row in `numbers`) for each value of `column`; nothing without the column."""
    hit_of = dict(zip(numbers, hits))
    return {
        f"{column}: {name}": mean([hit_of[number] for number in group])
        for name, group in rows_by_value(table, column, numbers).items()
    }


def rows_by_value(table: Table, column: str, numbers: Sequence[int]) -> dict[str, list[int]]:
    """Those of the rows `numbers` that hold each value of `column`, sorted; nothing without the column."""
    groups = defaultdict(list)
    for number in numbers:
        groups[table.rows[number].get(column, "")].append(number)
    return {name: groups[name] for name in sorted(groups) if name}


def details(table: Table, numbers: Sequence[int], hits: Sequence[bool]) -> dict[str, float]:
    """`by_column` of every column by which VLMEvalKit splits a score."""
    parts: dict[str, float] = {}
    for column in ("split", "l2-category", "category"):
        parts |= by_column(table, column, numbers, hits)
    return parts


def checked_options(table: Table, number: int) -> dict[str, str]:
    """The options of row `number`. TableError where its right answer is none of them."""
    options, gold = options_of(table.rows[number]), table.rows[number]["answer"]
    if gold not in options:
        raise table.fault(
            number,
            "answer",
            f"{gold!r} is none of the options {', '.join(options) or '(none)'}; if the authors' file has it, "
            'a program lost it (pandas takes the text "None" for nothing): use their file',
        )
    return options


def match_choices(table: Table, rules: MatchingRules) -> tuple[list[str | None], list[bool]]:
    """The option that each prediction means, and whether it is the right one."""
    matches = [
        match_option(row[PREDICTION], checked_options(table, number), rules)
        for number, row in enumerate(table.rows)
    ]
    return matches, [match == row["answer"] for match, row in zip(matches, table.rows)]


def match_yes_nos(table: Table, rules: MatchingRules) -> tuple[list[str | None], list[bool]]:
    """What `match_yes_no` says of each prediction, and whether that is right; TableError for a bad answer."""
    for number, row in enumerate(table.rows):
        if row["answer"] not in ("Yes", "No"):
            raise table.fault(number, "answer", f"{row['answer']!r}; expected Yes or No")
    matches = [match_yes_no(row[PREDICTION], rules) for row in table.rows]
    return matches, [match == row["answer"] for match, row in zip(matches, table.rows)]


def unmatched(table: Table, scored: Scored) -> list[int]:
    """Rows whose prediction was taken for no answer at all, and which count as wrong for that."""
    outcomes = enumerate(zip(scored.matches, scored.hits))
    return [
        number for number, (match, hit) in outcomes if match is None and not hit and "answer" in table.columns
    ]


def counts(scored: Scored) -> dict[str, int]:
    """How often each match occurs, None as "nothing": a model that always says A shows here."""
    short = (match if match is None or len(match) <= 3 else "text" for match in scored.matches)
    return {match or "nothing": number for match, number in Counter(short).most_common()}
