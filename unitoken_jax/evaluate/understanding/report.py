"""Results as JSON; of all a model's results one report beside the paper's numbers, Markdown and HTML."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from unitoken_jax.evaluate import page
from unitoken_jax.evaluate.faults import named, parse_json, read_json
from unitoken_jax.evaluate.markdown import markdown_table
from unitoken_jax.evaluate.recipe import write_json
from unitoken_jax.evaluate.registry import UNDERSTANDING_BENCHMARKS, find_understanding
from unitoken_jax.evaluate.understanding import examples
from unitoken_jax.evaluate.understanding.benchmark import Group, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import UNNAMED_RULES, MatchingRules, other_letter
from unitoken_jax.evaluate.understanding.scoring import JUDGE, Scored, counts, unmatched
from unitoken_jax.evaluate.understanding.table import INDEX, PREDICTION, Table, write_table
from unitoken_jax.storage.atomic import write_text

# Table 6's first and third rows (2M + 2M and 10M + 10M examples), models without any-res images.
PAPER_GROUPS: dict[Group, tuple[float, float]] = {"General": (49.8, 53.3), "TextRead": (42.9, 49.5)}
JUDGED = "judged.json"
_MAX_UNMATCHED = 5  # How many of the predictions that name no option are quoted in the results.
_SUFFIX = "_results.json"
_NUMBER = int | float | None
# What a report reads of results.
_RESULT_TYPES = {
    "dataset": str,
    "rows": int,
    "score": _NUMBER,
    "points": _NUMBER,
    "parts": dict,
    "notes": list,
}
_EXAMPLES_SUFFIX = "_examples.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers to the questions of one file.

    Args:
        model: the model's name, with which the names of its files begin.
        benchmark: what the file belongs to.
        dataset: VLMEvalKit's name of the file.
        table: the file's rows, with a column `prediction`.
        rules: what the predictions are scored by.
        cut_off: how many answers the limit of tokens ended.
        images: opens a row's images, for examples; None where they are not at hand.
    """

    model: str
    benchmark: UnderstandingBenchmark
    dataset: str
    table: Table
    rules: MatchingRules
    cut_off: int = 0
    images: Callable[[int], Sequence[Image.Image]] | None = None


def write_results(out: pathlib.Path, predictions: Predictions, scored: Scored) -> dict:
    """Writes results, examples, what every row was taken for, and the rows left for a judge to folder `out`.

    Returns the results, as they are in MODEL_DATASET_results.json.
    """
    benchmark, table, cut_off = predictions.benchmark, predictions.table, predictions.cut_off
    stem = out / f"{predictions.model}_{predictions.dataset}"
    missed = unmatched(table, scored)
    notes = list(scored.notes)
    if table.without_image:
        notes.append(f"{table.without_image} rows without an image were left out")
    if missed:
        notes.append(f"{len(missed)} predictions name no single option and count as wrong")
        foreign = Counter(filter(None, (other_letter(table.rows[row][PREDICTION]) for row in missed)))
        notes += [f"{number} of them say {letter}" for letter, number in foreign.most_common()]
    if cut_off:
        notes.append(f"{cut_off} answers reached the limit of tokens")
    results = {
        "benchmark": benchmark.name,
        "dataset": predictions.dataset,
        "model": predictions.model,
        "rules": predictions.rules.name,
        "rows": len(table.rows),
        "score": scored.score,
        "points": None if scored.score is None else scored.score / benchmark.per_point,
        "parts": scored.parts,
        "matches": counts(scored) if benchmark.answers_are_choices else {},
        "without_match": len(missed),
        "cut_off": cut_off,
        "notes": notes,
        "examples_without_match": [
            {"index": table.rows[row][INDEX], "prediction": table.rows[row][PREDICTION][:200]}
            for row in missed[:_MAX_UNMATCHED]
        ],
    }
    write_json(pathlib.Path(f"{stem}{_EXAMPLES_SUFFIX}"), examples.choose(table, scored, predictions.images))
    write_json(pathlib.Path(f"{stem}{_SUFFIX}"), results)
    verdicts = [
        (row[INDEX], row.get("answer", ""), row[PREDICTION], match or "", str(int(hit)))
        for row, match, hit in zip(table.rows, scored.matches, scored.hits)
    ]
    write_table(f"{stem}_matched.tsv", (INDEX, "answer", PREDICTION, "match", "hit"), verdicts)
    open_rows = [row for row, match in zip(table.rows, scored.matches) if match == JUDGE]
    if open_rows:
        columns = [*(name for name in table.columns if name != PREDICTION), PREDICTION]
        write_table(f"{stem}_for_judge.tsv", columns, ([row[name] for name in columns] for row in open_rows))
    return results


def read_judged(out: pathlib.Path) -> dict[str, float]:
    """Scores that an LLM judge gave, from `judged.json`: {"MathVista": 41.6}. ValueError names the key."""
    path = out / JUDGED
    if not path.exists():
        return {}
    with named(ValueError, str(path), "not valid JSON"):
        content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected {{"MathVista": 41.6, "MMVet": 30.0}}')
    judged = {}
    for name, value in content.items():
        with named(ValueError, str(path)):
            benchmark, _ = find_understanding(name)
        if not benchmark.needs_judge or isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path}: {name}: expected a number, for MathVista or MMVet")
        if not 0 <= value <= 100:
            raise ValueError(f"{path}: {name} is {value}; expected percent, 0 to 100")
        judged[benchmark.name] = float(value)
    return judged


def averages(points: Mapping[str, float | None]) -> dict[str, dict]:
    """{"General": {"average": ..., "missing": [...]}, "TextRead": ...} of {benchmark: points in 0..100}.

    The plain mean over the group's benchmarks, as under Table 6; None while one is missing.
    """
    of_group: dict[str, dict] = {}
    for group in PAPER_GROUPS:
        names = [benchmark.name for benchmark in UNDERSTANDING_BENCHMARKS if benchmark.group == group]
        missing = [name for name in names if points.get(name) is None]
        present = [value for name in names if (value := points.get(name)) is not None]
        average = None if missing else sum(present) / len(names)
        of_group[group] = {"average": average, "missing": missing}
    return of_group


def write_report(out: pathlib.Path, model: str) -> pathlib.Path:
    """Gathers every result of `model` in folder `out` into MODEL_report.md (its path), .html and .json."""
    results: dict[str, dict] = {}
    for benchmark in UNDERSTANDING_BENCHMARKS:
        for dataset in reversed(benchmark.datasets):  # the usual file last, so that it wins
            path = out / f"{model}_{dataset}{_SUFFIX}"
            if path.exists():
                result = read_json(path, _RESULT_TYPES)
                results[benchmark.name] = {"rules": UNNAMED_RULES.name} | result
    judged = read_judged(out)
    points = {name: result["points"] for name, result in results.items()} | judged
    groups = averages(points)
    rules = {name: result["rules"] for name, result in results.items() if name not in judged}
    report = {"points": points, "judged": judged, "rules": rules, "averages": groups}
    write_json(out / f"{model}_report.json", report)
    remarks = [*_REMARKS, *_mixed(rules)]
    title = f"{model} on the paper's understanding benchmarks"
    tables = _scores(results, judged), _averages(groups)
    path = out / f"{model}_report.md"
    text = "\n\n".join([f"# {title}", *(markdown_table(*table) for table in tables), "\n".join(remarks)])
    write_text(path, text + "\n")
    body = [page.table(*table) for table in tables] + [page.paragraph(" ".join(remarks))]
    for name, result in results.items():
        chosen = out / f"{model}_{result['dataset']}{_EXAMPLES_SUFFIX}"
        if chosen.exists():  # results of an older version have none
            body.append(page.heading(f"{name}: the first examples of each kind"))
            with named(ValueError, str(chosen), "not what was written there"):
                body.append(examples.cards(parse_json(chosen.read_text(encoding="utf-8"))))
    page.write_page(path.with_suffix(".html"), title, body)
    return path


_REMARKS = (
    'Scores by VLMEvalKit\'s rules without a judge (exact matching), those of the month in column "rules":',
    "which letters and texts name an option moves a score by many points. Averages are means of percents:",
    "MME is divided by 28 and OCRBench by 10. Table 6's models have no any-res images.",
)


def _mixed(rules: Mapping[str, str]) -> list[str]:
    """The remark that an average is of no one rule; nothing where {benchmark: rules} agree."""
    if len(set(rules.values())) < 2:
        return []
    return [
        "Not all scores are by the same rules, so an average of them means little: score the others again."
    ]


def _scores(results: Mapping, judged: Mapping) -> tuple[list, list[list]]:
    """Header and rows of the table of scores, a row for each benchmark that has one."""
    rows = []
    for benchmark in UNDERSTANDING_BENCHMARKS:
        result = results.get(benchmark.name)
        if result is None and benchmark.name not in judged:
            continue
        result = result or {"dataset": "", "rows": "", "score": None, "rules": "", "notes": [], "parts": {}}
        score, rules, notes = result["score"], result["rules"], list(result["notes"])
        if benchmark.name in judged:
            score, rules = judged[benchmark.name], ""
            notes = [f"a judge's score, from {JUDGED}"]
        else:
            notes += benchmark.remarks(result["parts"])
        cells = [benchmark.name, result["dataset"], result["rows"], _number(score)]
        rows.append([*cells, *map(_number, benchmark.paper), rules, "; ".join(notes)])
    header = ["benchmark", "file", "rows", "score", "paper, stage II", "paper, stage III", "rules", "remarks"]
    return header, rows


def _averages(groups: Mapping) -> tuple[list, list[list]]:
    """Header and rows of the table of averages: General and TextRead."""
    rows = [
        [group, *map(_number, [average["average"], *PAPER_GROUPS[group]]), ", ".join(average["missing"])]
        for group, average in groups.items()
    ]
    return ["average", "here", "paper, Table 6: 2M + 2M", "10M + 10M", "still missing"], rows


def _number(value: float | None) -> str:
    """A score with one decimal; empty where there is none."""
    return "" if value is None else f"{value:.1f}"
