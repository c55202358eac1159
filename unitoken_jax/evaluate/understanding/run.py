"""`unitoken evaluate` on understanding benchmarks: file -> predictions -> scores, or the last step alone.

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
import functools
import os
import pathlib

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.evaluate.devices import load_model
from unitoken_jax.evaluate.understanding.answering import answer_rows
from unitoken_jax.evaluate.understanding.benchmarks import Benchmark, find, find_for, has_answers
from unitoken_jax.evaluate.understanding.prompts import Template, find_template, question_parts
from unitoken_jax.evaluate.understanding.report import write_report, write_results
from unitoken_jax.evaluate.understanding.scoring import score
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

BATCH = 16


def score_predictions(
    benchmark: str,
    predictions: str | os.PathLike,
    out: str | os.PathLike,
    data: str | os.PathLike | None = None,
) -> list[str]:
    """Scores a predictions file, ours or VLMEvalKit's (M_D.tsv); lines for the user.

    Right answers come from `data`, the benchmark's file, or from the predictions file itself. Raises
    TableError where a file lacks columns, or where the two are not about the same rows; ValueError where a
    file's name is another benchmark's.
    """
    found, dataset = find_for(benchmark, predictions, *([] if data is None else [data]))
    predictions, out = pathlib.Path(predictions), pathlib.Path(out)
    if data is None:
        table = read_table(predictions, (PREDICTION, *_needed(found, dataset)), images=False)
    else:
        answers = read_table(data, (QUESTION, *_needed(found, dataset)), images=False)
        table = _joined(answers, read_table(predictions, (PREDICTION,), images=False))
    name = predictions.stem
    ending = f"_{dataset}".casefold()
    model = name[: -len(ending)] if name.casefold().endswith(ending) and len(name) > len(ending) else name
    return _finish(out, model, found, dataset, table, 0)


def run_benchmark(
    benchmark: str | None,
    model: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    template: str | None = None,
    max_tokens: int | None = None,
    batch: int | None = None,
    recipe: str | os.PathLike | None = None,
) -> list[str]:
    """Answers every question of `data` with model directory `model`, scores the answers; lines for the user.

    What is None is the default, or what `recipe`, an earlier run's, says; data and weights must then be the
    same. Called again, a killed run goes on. Raises ValueError (TableError) for what cannot be used.
    """
    repeated = None if recipe is None else recipes.load(recipe)
    if repeated is not None:
        benchmark, template = _same_choice(repeated, benchmark, template, str(recipe))
    elif benchmark is None:
        raise ValueError("which benchmark? give its name, or an earlier run's recipe")
    found, dataset = find_for(benchmark, data)
    shape = find_template(template or "vlmevalkit")
    table = read_table(data, (QUESTION, IMAGE, *_needed(found, dataset)))
    cells = row_images(table)
    question = functools.partial(_conversation, found, table, cells, shape)
    _check(model, found, table, question)
    check_images(table, cells)

    given = {"max_tokens": max_tokens, "batch": batch}
    if repeated is None:
        loaded = load_model(model)
        settings = _settings(loaded, given)
    else:
        settings = recipes.settings_of(repeated, given, str(recipe))
        loaded = load_model(model, dtype=settings["dtype"])
    made = recipes.make(
        found.name, dataset, {"data": table.path}, dataclasses.asdict(shape), settings, str(model)
    )
    notes = [] if repeated is None else recipes.check_same(repeated, made, str(recipe), recipes.MAY_DIFFER)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name = made["model"]["name"]
    stem = out / f"{name}_{dataset}"
    answers = answer_rows(loaded, question, len(table.rows), pathlib.Path(f"{stem}_answers.jsonl"), made)
    recipes.write_json(pathlib.Path(f"{stem}_recipe.json"), made)
    done = with_predictions(table, [text for text, _ in answers])
    write_table(f"{stem}.tsv", done.columns, ([row[name] for name in done.columns] for row in done.rows))
    cut_off = sum(not complete for _, complete in answers)
    images = functools.partial(_open_images, table, cells)
    return [*notes, f"predictions: {stem}.tsv", *_finish(out, name, found, dataset, done, cut_off, images)]


def _check(model: str | os.PathLike, benchmark: Benchmark, table: Table, question) -> None:
    """Raises for every row that cannot be asked or judged now, not after hours of answers."""
    from unitoken_jax.checkpoint.model_directory import load_settings
    from unitoken_jax.sequence.build import example_size

    score(benchmark, with_predictions(table, [""] * len(table.rows)))
    config, tokenizer, _ = load_settings(model)
    for row in range(len(table.rows)):
        example_size(question(row), tokenizer, config)


def _settings(model, given: dict) -> dict:
    """What decides an answer besides question and weights; greedy, as in the paper's section 3.4."""
    default = {"max_tokens": model.config.generation.max_answer_tokens, "batch": BATCH}
    chosen = {name: default[name] if value is None else value for name, value in given.items()}
    return {"temperature": 0.0, "top_k": None, "seed": 0, **chosen, "dtype": str(model.module.dtype)}


def _same_choice(recipe: dict, benchmark: str | None, template: str | None, where: str) -> tuple[str, str]:
    """The recipe's data set and template, checked against what was asked for."""
    if benchmark is not None and find(benchmark)[0].name != recipe["benchmark"]:
        raise ValueError(f"{where} is for {recipe['benchmark']}, not for {benchmark}")
    if template is not None and template != recipe["template"]["name"]:
        raise ValueError(f"{where} is for template {recipe['template']['name']}, not for {template}")
    return recipe["dataset"], recipe["template"]["name"]


def _needed(benchmark: Benchmark, dataset: str) -> tuple[str, ...]:
    without = () if has_answers(dataset) else ("answer",)
    return tuple(column for column in benchmark.columns if column not in without)


def _conversation(benchmark: Benchmark, table: Table, images: list[list[str]], template: Template, row: int):
    """Row `row` as a question to the model."""
    from unitoken_jax.sequence.conversation import make_conversation

    opened = _open_images(table, images, row)
    return make_conversation([question_parts(benchmark, table, row, opened, template)], table.place(row))


def _open_images(table: Table, images: list[list[str]], row: int) -> list:
    return [decode_image(table, row, text) for text in images[row]]


def with_predictions(table: Table, predictions: list[str]) -> Table:
    """`table` without images and with a column `prediction`."""
    rows = [
        {name: cell for name, cell in row.items() if name != IMAGE} | {PREDICTION: text}
        for row, text in zip(table.rows, predictions)
    ]
    columns = (*(name for name in table.columns if name not in (IMAGE, PREDICTION)), PREDICTION)
    return dataclasses.replace(table, rows=rows, columns=columns)


def _joined(answers: Table, given: Table) -> Table:
    """`answers` with the predictions of `given`. TableError where they are not about the same questions."""
    known = {row[INDEX]: number for number, row in enumerate(given.rows)}
    for number, row in enumerate(answers.rows):
        if row[INDEX] not in known:
            raise answers.fault(number, INDEX, f"{given.path} has no prediction for it")
        other = given.rows[known[row[INDEX]]]
        if QUESTION in other and other[QUESTION] != row[QUESTION]:
            raise given.fault(
                known[row[INDEX]],
                QUESTION,
                f"{other[QUESTION][:60]!r}; {answers.path} asks {row[QUESTION][:60]!r} there: predictions of "
                "another file",
            )
        if not _same_answer(other.get("answer", ""), row.get("answer", "")):
            raise given.fault(
                known[row[INDEX]],
                "answer",
                f"{other['answer'][:60]!r}; {answers.path} says {row['answer'][:60]!r}: predictions of "
                "another file",
            )
    if len(known) > len(answers.rows):
        wanted = {row[INDEX] for row in answers.rows}
        surplus = next(number for number, row in enumerate(given.rows) if row[INDEX] not in wanted)
        raise given.fault(surplus, INDEX, f"{answers.path} has no such row: predictions of another file")
    return with_predictions(answers, [given.rows[known[row[INDEX]]][PREDICTION] for row in answers.rows])


def _same_answer(one: str, other: str) -> bool:
    """Whether two cells may mean the same: pandas writes numbers anew, and drops "None"."""
    if not one.strip() or not other.strip() or one.strip() == other.strip():
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _finish(
    out: pathlib.Path,
    model: str,
    benchmark: Benchmark,
    dataset: str,
    table: Table,
    cut_off: int,
    images=None,
) -> list[str]:
    """Scores, writes and reports."""
    if not table.rows:
        raise TableError(f"{table.path}: no rows to score")
    scored = score(benchmark, table)
    out.mkdir(parents=True, exist_ok=True)
    results = write_results(out, model, benchmark, dataset, table, scored, cut_off, images)
    report = write_report(out, model)
    shown = f"{results['score']:.2f}" if results["score"] is not None else "none (see the notes)"
    if results["score"] is None and (benchmark.needs_judge or "answer" not in table.columns):
        shown = "none without a judge or server"
    lines = [f"{benchmark.name} ({dataset}, {results['rows']} rows): score {shown}"]
    lines += [f"  {name}: {value:.2f}" for name, value in results["parts"].items() if ": " not in name]
    return [*lines, *(f"  note: {note}" for note in results["notes"]), f"report: {report}"]
