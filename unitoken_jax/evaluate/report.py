"""Results as JSON, and one Markdown table of a model's results beside the paper's numbers."""

import json
import pathlib
from collections.abc import Mapping

from unitoken_jax.evaluate.benchmarks import BENCHMARKS, GROUPS, PAPER_GROUPS, Benchmark, find
from unitoken_jax.evaluate.recipe import write_json
from unitoken_jax.evaluate.scoring import JUDGE, Scored, counts, unmatched
from unitoken_jax.evaluate.table import INDEX, PREDICTION, Table, write_table

JUDGED = "judged.json"
_EXAMPLES = 5
_SUFFIX = "_results.json"


def write_results(
    out: pathlib.Path,
    model: str,
    benchmark: Benchmark,
    dataset: str,
    table: Table,
    scored: Scored,
    cut_off: int,
) -> dict:
    """Writes results, what every row was taken for, and what is left for a judge; the results.

    `cut_off`: answers that the limit of tokens ended.
    """
    stem = out / f"{model}_{dataset}"
    missed = unmatched(table, scored)
    notes = list(scored.notes)
    if table.without_picture:
        notes.append(f"{table.without_picture} rows without a picture were left out")
    if missed:
        notes.append(f"{len(missed)} predictions name no single option and count as wrong")
    if cut_off:
        notes.append(f"{cut_off} answers reached the limit of tokens")
    results = {
        "benchmark": benchmark.name,
        "dataset": dataset,
        "model": model,
        "rows": len(table.rows),
        "score": scored.score,
        "points": None if scored.score is None else scored.score / benchmark.per_point,
        "parts": scored.parts,
        "matches": counts(scored) if benchmark.family != "ocr" else {},
        "without_match": len(missed),
        "cut_off": cut_off,
        "notes": notes,
        "examples_without_match": [
            {"index": table.rows[row][INDEX], "prediction": table.rows[row][PREDICTION][:200]}
            for row in missed[:_EXAMPLES]
        ],
    }
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
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f'{path}: expected {{"MathVista": 41.6, "MMVet": 30.0}}')
    judged = {}
    for name, value in given.items():
        benchmark, _ = find(name)
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
    found = {}
    for group in GROUPS:
        names = [benchmark.name for benchmark in BENCHMARKS if benchmark.group == group]
        missing = [name for name in names if points.get(name) is None]
        average = None if missing else sum(points[name] for name in names) / len(names)
        found[group] = {"average": average, "missing": missing}
    return found


def write_report(out: pathlib.Path, model: str) -> pathlib.Path:
    """Gathers every result of `model` in folder `out` into MODEL_report.md (its path) and .json."""
    results: dict[str, dict] = {}
    for benchmark in BENCHMARKS:
        for dataset in reversed(benchmark.datasets):  # the usual file last, so that it wins
            path = out / f"{model}_{dataset}{_SUFFIX}"
            if path.exists():
                results[benchmark.name] = json.loads(path.read_text(encoding="utf-8"))
    judged = read_judged(out)
    points = {name: result["points"] for name, result in results.items()} | judged
    groups = averages(points)
    write_json(out / f"{model}_report.json", {"points": points, "judged": judged, "averages": groups})
    path = out / f"{model}_report.md"
    path.write_text("\n".join(_lines(model, results, judged, groups)) + "\n", encoding="utf-8")
    return path


def _lines(model: str, results: Mapping, judged: Mapping, groups: Mapping) -> list[str]:
    lines = [
        f"# {model} on the paper's understanding benchmarks",
        "",
        "| benchmark | file | rows | score | paper, stage II | paper, stage III | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    for benchmark in BENCHMARKS:
        result = results.get(benchmark.name)
        if result is None and benchmark.name not in judged:
            continue
        result = result or {"dataset": "", "rows": "", "score": None, "notes": [], "parts": {}}
        score, notes = result["score"], list(result["notes"])
        if benchmark.name in judged:
            score = judged[benchmark.name]
            notes = [f"a judge's score, from {JUDGED}"]
        elif benchmark.needs_judge:
            notes += [f"{name}: {value:.1f}" for name, value in result["parts"].items() if "no-judge" in name]
        if benchmark.family == "hallusion":
            notes += [f"{name} {result['parts'][name]:.1f}" for name in ("fAcc", "qAcc")]
        cells = [benchmark.name, result["dataset"], result["rows"], _number(score)]
        cells += [_number(value) for value in benchmark.paper]
        lines.append("| " + " | ".join(map(str, [*cells, "; ".join(notes).replace("|", "\\|")])) + " |")
    lines += [
        "",
        "| average | here | paper, Table 6: 2M + 2M | 10M + 10M | still missing |",
        "|---|---|---|---|---|",
    ]
    for group, found in groups.items():
        cells = [group, _number(found["average"]), *map(_number, PAPER_GROUPS[group])]
        lines.append("| " + " | ".join([*cells, ", ".join(found["missing"])]) + " |")
    lines += [
        "",
        "Scores by VLMEvalKit's rules without a judge (exact matching). Averages are means of percents:",
        "MME is divided by 28 and OCRBench by 10. Table 6's models have no any-res pictures.",
    ]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
