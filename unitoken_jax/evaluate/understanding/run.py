"""`unitoken evaluate run`: a benchmark's file -> predictions -> scores, or the last step alone
(`unitoken evaluate score`).

Scoring imports no jax. In folder `out`, for model M and data set D:

    M_D.tsv            predictions as VLMEvalKit's scorers take them: no images, a column more
    M_D_recipe.json    what decides them, and repeats them
    M_D_answers.jsonl  the journal that a killed run goes on from
    M_D_results.json   scores
    M_D_matched.tsv    what every prediction was taken for
    M_D_for_judge.tsv  rows that only an LLM judge can score
    M_report.md        every result of M in the folder beside the paper's, with the averages
"""

import dataclasses
import os
import pathlib
import re
from typing import TYPE_CHECKING

from PIL import Image

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.devices import load_model
from unitoken_jax.evaluate.faults import encodable, named
from unitoken_jax.evaluate.registry import find_understanding
from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import PAPER_RULES, UNNAMED_RULES, find_rules
from unitoken_jax.evaluate.understanding.prompts import Template, find_template
from unitoken_jax.evaluate.understanding.report import Predictions, write_report, write_results
from unitoken_jax.evaluate.understanding.table import (
    IMAGE,
    INDEX,
    PREDICTION,
    QUESTION,
    Table,
    TableError,
    check_images,
    decode_image,
    read_table,
    row_images,
    write_table,
)
from unitoken_jax.sequence.image import open_image
from unitoken_jax.storage.paths import expand_home

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken

BATCH = 16


def score_predictions(
    benchmark: str,
    predictions: str | os.PathLike,
    out: str | os.PathLike,
    data: str | os.PathLike | None = None,
    rules: str | None = None,
) -> list[str]:
    """Scores a predictions file, ours or VLMEvalKit's (M_D.tsv); lines for the user.

    Args:
        benchmark: a name that `find_understanding` knows.
        predictions: the file.
        out: the folder for results and report.
        data: the benchmark's file, for the right answers; None: those in the predictions file.
        rules: the name of the rules to score by; None: those of the paper's time.

    Raises TableError where a file lacks columns, or where the two are not about the same rows; ValueError
    where a file's name is another benchmark's.
    """
    scored_by = find_rules(rules or PAPER_RULES.name)
    understanding, dataset = find_understanding(benchmark, predictions, *([] if data is None else [data]))
    if data is None:
        table = understanding.read_predictions(predictions, dataset)
    else:
        answers = understanding.read(data, dataset, images=False)
        table = _joined(answers, read_table(predictions, (PREDICTION,), images=False))
    name = encodable(pathlib.Path(predictions).stem)
    ending = f"_{dataset}".casefold()
    model = name[: -len(ending)] if name.casefold().endswith(ending) and len(name) > len(ending) else name
    return _score_and_report(
        pathlib.Path(expand_home(out)), Predictions(model, understanding, dataset, table, scored_by)
    )


def run_benchmark(
    benchmark: str | None,
    model: str | os.PathLike | None,
    data: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    adapter: str | os.PathLike | None = None,
    template: str | None = None,
    rules: str | None = None,
    max_tokens: int | None = None,
    batch: int | None = None,
    recipe: str | os.PathLike | None = None,
) -> list[str]:
    """Answers every question of a file, scores the answers, and writes a report; returns lines for the user.

    Called again, a killed run goes on. Raises ValueError (TableError) for what cannot be used.

    Args:
        benchmark: a name that `find_understanding` knows; None: the recipe's.
        model: a model directory; None: the adapter's base, or the one that is meant without a name.
        adapter: an adapter folder, of that model.
        data: the benchmark's file, as VLMEvalKit has it; None: the one in the package, if it is there.
        out: the folder for everything that is written.
        template: the name of a wording; None: the recipe's, or VLMEvalKit's.
        rules: the name of the rules to score by; None: the recipe's, or those of the paper's time.
        max_tokens: the longest answer; None: the recipe's, or the model's.
        batch: questions answered at one time; None: the recipe's, or 16.
        recipe: an earlier run's file; data and weights must then be the same.
    """
    from unitoken_jax.checkpoint.adapter import load_adapter, model_of

    earlier = None if recipe is None else recipes.load(recipe)
    if earlier is not None:
        earlier = {"rules": UNNAMED_RULES.name} | earlier
        benchmark, template, rules = _same_choice(earlier, benchmark, template, rules, str(recipe))
    elif benchmark is None:
        raise ValueError("which benchmark? give its name, or an earlier run's recipe")
    data = find_understanding(benchmark)[0].data_file(data)
    understanding, dataset = find_understanding(benchmark, data)
    wording, scored_by = find_template(template or "vlmevalkit"), find_rules(rules or PAPER_RULES.name)
    change = None if adapter is None else load_adapter(adapter)
    model = model_of(model, change)
    table, cells = _read_checked(model, understanding, dataset, data, wording)
    choices = {"max_tokens": max_tokens, "batch": batch}
    loaded, settings = _load(model, earlier, choices, str(recipe), adapter)
    files = {"data": table.path}
    wording_fields = dataclasses.asdict(wording)
    asked = recipes.make(understanding.name, dataset, files, wording_fields, settings, str(model), change)
    current = asked | {"rules": scored_by.name}  # they decide the scores, and none of the answers
    notes = [] if earlier is None else recipes.check_same(earlier, current, str(recipe), recipes.MAY_DIFFER)
    out = pathlib.Path(expand_home(out))
    out.mkdir(parents=True, exist_ok=True)
    name = current["model"]["name"]
    stem = out / f"{name}_{dataset}"
    answers = understanding.run(loaded, table, wording, pathlib.Path(f"{stem}_answers.jsonl"), asked)
    recipes.write_json(pathlib.Path(f"{stem}_recipe.json"), current)
    answered = with_predictions(table, [text for text, _ in answers])
    write_table(
        f"{stem}.tsv", answered.columns, ([row[c] for c in answered.columns] for row in answered.rows)
    )
    cut_off = sum(not complete for _, complete in answers)

    def images(row: int) -> list[Image.Image]:
        return [open_image(decode_image(table, row, text)) for text in cells[row]]

    predictions = Predictions(name, understanding, dataset, answered, scored_by, cut_off, images)
    return [*notes, f"predictions: {stem}.tsv", *_score_and_report(out, predictions)]


def _read_checked(
    model: str | os.PathLike,
    benchmark: UnderstandingBenchmark,
    dataset: str,
    data: str | os.PathLike,
    template: Template,
) -> tuple[Table, list[list[str]]]:
    """The rows of file `data`, each of which can be asked and judged, and their images (`row_images`).

    Raises TableError naming the first that cannot. A score over the others would not be the benchmark's, so
    that a run does not begin without it.
    """
    try:
        table = benchmark.read(data, dataset)
        cells = row_images(table)
        check_rows(model, benchmark, table, template)
        check_images(table, cells)
    except TableError as error:
        raise TableError(f"{error}; nothing was asked yet: mend or remove it, and call this again") from error
    return table, cells


def check_rows(
    model: str | os.PathLike, benchmark: UnderstandingBenchmark, table: Table, template: Template
) -> None:
    """Raises for every row that cannot be asked or judged now, not after hours of answers."""
    from unitoken_jax.checkpoint.model_directory import load_settings
    from unitoken_jax.sequence.build import example_size

    benchmark.score(with_predictions(table, [""] * len(table.rows)))
    config, tokenizer, _ = load_settings(model)
    tokenizer = tokenizer.literal()
    cells = row_images(table)
    for row in range(len(table.rows)):
        with table.reading(row):
            example_size(benchmark.conversation(table, cells, template, row), tokenizer, config)


def _load(
    model: str | os.PathLike,
    recipe: dict | None,
    choices: dict,
    source: str,
    adapter: str | os.PathLike | None,
) -> tuple["UniToken", dict]:
    """The model with `adapter`, and what else decides an answer, as `recipe` (of file `source`) says.

    Without a recipe: `choices`, where None the model's values; greedy, as in the paper's section 3.4.
    """
    if recipe is not None:
        settings = recipes.settings_of(recipe, choices, source)
        return load_model(model, settings.get("dtype"), adapter), settings
    loaded = load_model(model, adapter=adapter)
    default = {"max_tokens": loaded.config.generation.max_answer_tokens, "batch": BATCH}
    chosen = {name: default[name] if value is None else value for name, value in choices.items()}
    settings = {"temperature": 0.0, "top_k": None, "seed": 0, **chosen, "dtype": str(loaded.module.dtype)}
    return loaded, settings


def _same_choice(
    recipe: dict, benchmark: str | None, template: str | None, rules: str | None, source: str
) -> tuple[str, str, str]:
    """Data set, template and rules of `recipe`, which `source` names, checked against what was asked for."""
    if benchmark is not None and find_understanding(benchmark)[0].name != recipe["benchmark"]:
        raise ValueError(f"{source} is for {recipe['benchmark']}, not for {benchmark}")
    with named(ValueError, source, "no recipe of questions about images"):
        dataset, wording = str(recipe["dataset"]), str(recipe["template"]["name"])
    if template is not None and template != wording:
        raise ValueError(f"{source} is for template {wording}, not for {template}")
    if rules is not None and rules != recipe["rules"]:
        raise ValueError(
            f"{source} is for rules {recipe['rules']}, not for {rules}: repeat it without --rules, then "
            f"score its predictions by others (unitoken evaluate score --rules {rules})"
        )
    return dataset, wording, recipe["rules"]


def with_predictions(table: Table, predictions: list[str]) -> Table:
    """`table` without images and with a column `prediction`."""
    rows = [
        {name: cell for name, cell in row.items() if name != IMAGE} | {PREDICTION: text}
        for row, text in zip(table.rows, predictions)
    ]
    columns = (*(name for name in table.columns if name not in (IMAGE, PREDICTION)), PREDICTION)
    return dataclasses.replace(table, rows=rows, columns=columns)


def _joined(answers: Table, predictions: Table) -> Table:
    """`answers` with the column `prediction` of `predictions`; TableError where their questions differ."""
    number_of = {row[INDEX]: number for number, row in enumerate(predictions.rows)}
    texts = []
    for number, row in enumerate(answers.rows):
        if row[INDEX] not in number_of:
            raise answers.fault(number, INDEX, f"{predictions.path} has no prediction for it")
        predicted = predictions.rows[number_of[row[INDEX]]]
        texts.append(predicted[PREDICTION])
        column, problem = "", ""
        if _plain(predicted.get(QUESTION, row[QUESTION])) != _plain(row[QUESTION]):
            column, problem = QUESTION, "asks"
        elif not _same_answer(predicted.get("answer", ""), row.get("answer", "")):
            column, problem = "answer", "says"
        if problem:
            there, here = _excerpts(_plain(predicted[column]), _plain(row[column]))
            message = f"{there}; {answers.path} {problem} {here}: predictions of another file"
            raise predictions.fault(number_of[row[INDEX]], column, message)
    indices = {row[INDEX] for row in answers.rows} | answers.left_out
    for number, row in enumerate(predictions.rows):
        if row[INDEX] not in indices:
            message = f"{answers.path} has no such row: predictions of another file"
            raise predictions.fault(number, INDEX, message)
    return with_predictions(answers, texts)


def _plain(text: str) -> str:
    """`text` with what a spreadsheet writes as "_x000D_" (a carriage return) undone, and plain line ends."""
    text = re.sub(r"_x([0-9A-Fa-f]{4})_", lambda code: chr(int(code[1], 16)), text)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _excerpts(first: str, second: str) -> tuple[str, str]:
    """Where two texts begin to differ, of each 60 characters that show it, quoted."""
    pairs = enumerate(zip(first, second))
    agree = next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
    start = max(0, agree - 20) if agree > 40 else 0
    lead = "... " if start else ""
    return f"{lead}{first[start : start + 60]!r}", f"{lead}{second[start : start + 60]!r}"


def _same_answer(first: str, second: str) -> bool:
    """Whether two cells may mean the same: pandas writes numbers anew, and drops "None"."""
    first, second = _plain(first), _plain(second)
    if not first.strip() or not second.strip() or first.strip() == second.strip():
        return True
    try:
        return float(first) == float(second)
    except ValueError:
        return False


def _score_and_report(out: pathlib.Path, predictions: Predictions) -> list[str]:
    """Scores `predictions`, writes results and the model's report to folder `out`; lines for the user."""
    benchmark, table = predictions.benchmark, predictions.table
    if not table.rows:
        raise TableError(f"{table.path}: no rows to score")
    scored = benchmark.score(table, predictions.rules)
    out.mkdir(parents=True, exist_ok=True)
    results = write_results(out, predictions, scored)
    report = write_report(out, predictions.model)
    shown = f"{results['score']:.2f}" if results["score"] is not None else "none (see the notes)"
    if results["score"] is None and (benchmark.needs_judge or "answer" not in table.columns):
        shown = "none without a judge or server"
    lines = [f"{benchmark.name} ({predictions.dataset}, {results['rows']} rows): score {shown}"]
    lines += [f"  {name}: {value:.2f}" for name, value in results["parts"].items() if ": " not in name]
    lines += [f"  note: {note}" for note in results["notes"]]
    return [*lines, f"rules: {results['rules']}", f"report: {report}"]
