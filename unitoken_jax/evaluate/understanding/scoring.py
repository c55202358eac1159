"""Predictions -> scores, one function a family of benchmarks, by VLMEvalKit's rules in exact-match mode.

Each takes a table whose rows have `answer` and `prediction`. A gold answer that its benchmark cannot mean
is an error that names the row: a wrong score would be worse.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from unitoken_jax.evaluate.understanding.benchmarks import Benchmark
from unitoken_jax.evaluate.understanding.matching import match_option, match_yes_no, reads_right
from unitoken_jax.evaluate.understanding.prompts import options_of
from unitoken_jax.evaluate.understanding.table import INDEX, PREDICTION, Table, TableError, literal_list

JUDGE = "judge"  # what a row's match says where only an LLM judge can tell
ROTATION = 1_000_000  # MMBench's circular copies of a question are this many indices apart
PERCEPTION = (
    "OCR",
    "artwork",
    "celebrity",
    "color",
    "count",
    "existence",
    "landmark",
    "position",
    "posters",
    "scene",
)
REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


@dataclasses.dataclass(frozen=True)
class Scored:
    """A benchmark's outcome.

    `score`: as the paper's tables count it, None where the rows do not decide it; `parts`: what it is made
    of; `matches`: what each row's prediction was taken for (None: for nothing), `hits` whether that is right.
    """

    score: float | None
    parts: dict[str, float]
    matches: list[str | None]
    hits: list[bool]
    notes: list[str] = dataclasses.field(default_factory=list)


def score(benchmark: Benchmark, table: Table) -> Scored:
    """Scores `table` by the rules of `benchmark`. Raises TableError for a row that cannot be judged."""
    if "answer" not in table.columns:
        note = "the file has no answers: hand the predictions to the benchmark's server"
        nothing = [None] * len(table.rows)
        return Scored(None, {}, nothing, [False] * len(nothing), [note])
    return _SCORERS[benchmark.family](table)


def mean(values: Sequence[float]) -> float:
    """In percent."""
    return 100 * sum(values) / len(values)


def by_column(table: Table, column: str, numbers: Sequence[int], hits: Sequence[bool]) -> dict[str, float]:
    """Percent of `hits` (one a row in `numbers`) for each value of `column`; nothing without the column."""
    if column not in table.columns:
        return {}
    groups = defaultdict(list)
    for number, hit in zip(numbers, hits):
        groups[table.rows[number][column]].append(hit)
    return {f"{column}: {name}": mean(groups[name]) for name in sorted(groups) if name}


def _details(table: Table, numbers: Sequence[int], hits: Sequence[bool]) -> dict[str, float]:
    parts = {}
    for column in ("split", "l2-category", "category"):
        parts |= by_column(table, column, numbers, hits)
    return parts


def _options(table: Table, number: int) -> dict[str, str]:
    """The row's options, its gold answer checked to be one of them."""
    options, gold = options_of(table.rows[number]), table.rows[number]["answer"]
    if gold not in options:
        raise table.fault(
            number, "answer", f"{gold!r} is none of the options {', '.join(options) or '(none)'}"
        )
    return options


def _match_choices(table: Table) -> tuple[list[str | None], list[bool]]:
    matches = [
        match_option(row[PREDICTION], _options(table, number)) for number, row in enumerate(table.rows)
    ]
    return matches, [match == row["answer"] for match, row in zip(matches, table.rows)]


def _choice(table: Table) -> Scored:
    matches, hits = _match_choices(table)
    return Scored(mean(hits), _details(table, range(len(hits)), hits), matches, hits)


def _circular(table: Table) -> Scored:
    """A question counts where every rotation of its options is answered right."""
    groups = defaultdict(list)
    for number, row in enumerate(table.rows):
        if not row[INDEX].isdecimal():
            raise table.fault(number, INDEX, "not a whole number, as MMBench's indices are")
        groups[int(row[INDEX]) % ROTATION].append(number)
    for question, numbers in groups.items():
        if not any(int(table.rows[number][INDEX]) == question for number in numbers):
            raise table.fault(numbers[0], INDEX, f"a rotation of question {question}, which is no row")
    matches, hits = _match_choices(table)
    mains = [number for number, row in enumerate(table.rows) if int(row[INDEX]) < ROTATION]
    circular = [all(hits[n] for n in groups[int(table.rows[main][INDEX])]) for main in mains]
    single = mean([hits[main] for main in mains])
    parts = _details(table, mains, circular) | {"not circular": single}
    notes = []
    if len(mains) == len(hits):
        notes = ["no question has rotated copies here: this is not MMBench's circular score"]
    return Scored(mean(circular), parts, matches, hits, notes)


def _mmmu(table: Table) -> Scored:
    """An open question (no options) becomes: A the right answer, B "Other Answers"."""
    matches, hits, lost = [], [], 0
    for number, row in enumerate(table.rows):
        gold = row["answer"]
        if row.get("A", "") != "":
            options = _options(table, number)
        else:
            if not gold:
                raise table.fault(number, "answer", "empty")
            options = {"A": gold, "B": "Other Answers"}
            # VLMEvalKit keeps a capital letter as the wanted letter; so do we, to count as it does.
            letter = len(gold) == 1 and "A" <= gold <= "Z"
            lost += letter and gold != "A"
            gold = gold if letter else "A"
        matches.append(match_option(row[PREDICTION], options))
        hits.append(matches[-1] == gold)
    numbers = list(range(len(hits)))
    notes = [f"{lost} open questions whose answer is a capital letter cannot be hit by this rule"] * bool(
        lost
    )
    if "split" in table.columns:
        numbers = [number for number in numbers if table.rows[number]["split"] == "validation"]
        if not numbers:
            raise TableError(f"{table.path}: no row has 'validation' in column 'split', which MMMU reports")
    else:
        notes.append("no column 'split': all rows count, the paper's number is the validation split's")
    parts = by_column(table, "split", range(len(hits)), hits)
    own = [hits[number] for number in numbers]
    for column in ("l2-category", "category"):
        parts |= by_column(table, column, numbers, own)
    return Scored(mean(own), parts, matches, hits, notes)


def _match_yes_no(table: Table) -> tuple[list[str | None], list[bool]]:
    for number, row in enumerate(table.rows):
        if row["answer"] not in ("Yes", "No"):
            raise table.fault(number, "answer", f"{row['answer']!r}; expected Yes or No")
    matches = [match_yes_no(row[PREDICTION]) for row in table.rows]
    return matches, [match == row["answer"] for match, row in zip(matches, table.rows)]


def _mme(table: Table) -> Scored:
    """A category's points: accuracy, and the share of images with both questions right, in percent."""
    matches, hits = _match_yes_no(table)
    images: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(table.rows):
        if row["category"] not in PERCEPTION + REASONING:
            raise table.fault(number, "category", f"{row['category']!r} is none of MME's 14")
        images[row["category"]][row["image_path"]].append(number)
    points = {}
    for category, by_image in images.items():
        for path, numbers in by_image.items():
            if len(numbers) != 2:
                raise table.fault(
                    numbers[-1],
                    "image_path",
                    f"{len(numbers)} questions about {path!r}; MME asks two an image",
                )
        own = [hits[number] for numbers in by_image.values() for number in numbers]
        both = [all(hits[number] for number in numbers) for numbers in by_image.values()]
        points[category] = mean(own) + mean(both)
    parts, notes = {}, []
    for name, categories in (("perception", PERCEPTION), ("reasoning", REASONING)):
        if all(category in points for category in categories):
            parts[name] = sum(points[category] for category in categories)
    if len(parts) < 2:
        absent = [category for category in PERCEPTION + REASONING if category not in points]
        notes = [f"no total: the file lacks the categories {', '.join(absent)}"]
    total = None if notes else parts["perception"] + parts["reasoning"]
    return Scored(total, parts | points, matches, hits, notes)


def _hallusion(table: Table) -> Scored:
    """aAcc: questions; fAcc: figures, qAcc: question pairs, with everything about them right."""
    matches, hits = _match_yes_no(table)
    figures, questions = defaultdict(list), defaultdict(list)
    for number, row in enumerate(table.rows):
        pieces = row[INDEX].split("_")
        if len(pieces) < 6:
            raise table.fault(number, INDEX, "expected at least six parts between underscores")
        group, figure, question = pieces[3:6]
        figures[row["l2-category"], group, figure].append(hits[number])
        questions[row["l2-category"], group, question].append(hits[number])
    parts = {
        "aAcc": mean(hits),
        "fAcc": mean([all(group) for group in figures.values()]),
        "qAcc": mean([all(group) for group in questions.values()]),
    }
    parts["mean of the three"] = sum(parts.values()) / 3
    return Scored(parts["aAcc"], parts, matches, hits, ["the score is aAcc; the paper does not say which"])


def _ocr(table: Table) -> Scored:
    """Right readings, of 1,000."""
    readings = [literal_list(table, number, "answer") for number in range(len(table.rows))]
    for number, answers in enumerate(readings):
        if not all(answer.strip() for answer in answers):
            raise table.fault(number, "answer", f"{answers}: a blank reading stands in every prediction")
    hits = [
        reads_right(answers, row[PREDICTION], row["category"]) for answers, row in zip(readings, table.rows)
    ]
    notes = [] if len(hits) == 1000 else [f"{len(hits)} rows: their share of right ones, times 1000"]
    matches = [row[PREDICTION] for row in table.rows]
    return Scored(10 * mean(hits), by_column(table, "category", range(len(hits)), hits), matches, hits, notes)


def _mathvista(table: Table) -> Scored:
    """What can be told without a judge: options, and predictions that are a number and nothing else."""
    told = [_mathvista_row(table, number) for number in range(len(table.rows))]
    matches, hits = [match for match, _ in told], [hit for _, hit in told]
    left = matches.count(JUDGE)
    parts = {"no-judge, a lower bound": mean(hits)} | by_column(table, "task", range(len(hits)), hits)
    return Scored(None, parts, matches, hits, [f"{left} of {len(hits)} rows need an LLM judge"])


def _mathvista_row(table: Table, number: int) -> tuple[str, bool]:
    row = table.rows[number]
    if row["question_type"] == "multi_choice":
        choices = literal_list(table, number, "choices")
        options = {chr(ord("A") + i): text for i, text in enumerate(choices)}
        gold = row["answer_option"]
        if gold not in options:
            raise table.fault(number, "answer_option", f"{gold!r} is none of {', '.join(options)}")
        match = match_option(row[PREDICTION], options)
        return match or JUDGE, match == gold
    if row["question_type"] != "free_form":
        raise table.fault(
            number, "question_type", f"{row['question_type']!r}; expected multi_choice or free_form"
        )
    kinds: dict[str, Callable] = {"integer": int, "float": float}
    if row["answer_type"] not in kinds:
        return JUDGE, False
    kind = kinds[row["answer_type"]]
    try:
        gold = kind(row["answer"])
    except ValueError:
        raise table.fault(number, "answer", f"{row['answer']!r} is no {row['answer_type']}") from None
    try:
        hit = kind(row[PREDICTION]) == gold
    except ValueError:
        hit = False
    return (row[PREDICTION], True) if hit else (JUDGE, False)


def _mmvet(table: Table) -> Scored:
    count = len(table.rows)
    return Scored(None, {}, [JUDGE] * count, [False] * count, [f"all {count} rows need an LLM judge"])


_SCORERS: dict[str, Callable[[Table], Scored]] = {
    "choice": _choice,
    "circular": _circular,
    "mmmu": _mmmu,
    "mme": _mme,
    "hallusion": _hallusion,
    "ocr": _ocr,
    "mathvista": _mathvista,
    "mmvet": _mmvet,
}


def unmatched(table: Table, scored: Scored) -> list[int]:
    """Rows whose prediction was taken for no answer at all."""
    return [
        number for number, match in enumerate(scored.matches) if match is None and "answer" in table.columns
    ]


def counts(scored: Scored) -> dict[str, int]:
    """How often each match occurs, None as "nothing": a model that always says A shows here."""
    short = (match if match is None or len(match) <= 3 else "text" for match in scored.matches)
    return {match or "nothing": number for match, number in Counter(short).most_common()}
