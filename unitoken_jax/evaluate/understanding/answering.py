"""Asks a model every question of a file, greedily, in chunks that are kept as they come.

The journal's first line is the run's recipe, each further line one chunk's answers. A run that was killed
goes on at the first chunk that is not whole; chunks hold the same rows either way, so the answers are the
same byte for byte.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

from tqdm import tqdm

from unitoken_jax.evaluate import recipe as recipes
from unitoken_jax.sequence.conversation import Conversation
from unitoken_jax.storage.atomic import explain_os_error

CHUNK = 64  # rows answered between two writes to the journal


def answer_rows(
    model,
    conversation: Callable[[int], Conversation],
    rows: int,
    journal: pathlib.Path,
    recipe: Mapping,
) -> list[tuple[str, bool]]:
    """(answer, whether the model ended it) of every row.

    Args:
        model: a UniToken.
        conversation: the question of a row, by its number.
        rows: how many rows there are.
        journal: the file that chunks of answers are kept in.
        recipe: what the journal must belong to; its `settings` say how the model answers.

    Raises ValueError where `journal` belongs to a run with another recipe, and, naming the first and the last
    row of a chunk, where the model cannot answer it, as for want of memory.
    """
    settings = {name: value for name, value in recipe["settings"].items() if name != "dtype"}
    answers = _resume(journal, recipe, rows)
    with open(journal, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            _append(file, {"recipe": recipe})
        with tqdm(total=rows, initial=len(answers), unit="question", disable=None) as bar:
            while len(answers) < rows:
                start = len(answers)
                conversations = [conversation(row) for row in range(start, min(start + CHUNK, rows))]
                try:
                    replies = model.text_results(conversations, **settings)
                except ValueError as error:
                    first, last = conversations[0].source, conversations[-1].source
                    raise ValueError(f"among {first} to {last}: {error}") from error
                chunk = [(reply.text, reply.complete) for reply in replies]
                try:
                    _append(file, {"start": start, "answers": chunk})
                except OSError as error:
                    raise explain_os_error(error, journal) from error
                answers += chunk
                bar.update(len(chunk))
    return answers


def _append(file, entry: Mapping) -> None:
    """Writes a line of the journal, and returns when it is on disk."""
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _resume(journal: pathlib.Path, recipe: Mapping, rows: int) -> list[tuple[str, bool]]:
    """The answers that `journal` holds already; what a kill left half-written is cut off."""
    if not journal.exists():
        return []
    answers: list[tuple[str, bool]] = []
    whole = 0
    with open(journal, "rb") as file:
        for line in file:
            entry = _entry(line)
            if entry is None:
                break
            if whole == 0:
                if "recipe" not in entry:
                    break
                recipes.check_same(entry["recipe"], json.loads(json.dumps(recipe)), _advice(journal))
            elif entry.get("start") != len(answers) or len(answers) + len(entry["answers"]) > rows:
                break
            else:
                answers += [(text, complete) for text, complete in entry["answers"]]
            whole += len(line)
    os.truncate(journal, whole)
    return answers


def _advice(journal: pathlib.Path) -> str:
    """Names the journal in an error, with what to do about it."""
    return f"{journal} (remove it to start anew, or choose another --out)"


def _entry(line: bytes) -> dict | None:
    """A line's content; None where it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    answers = entry.get("answers")
    pairs = isinstance(answers, list) and all(isinstance(one, list) and len(one) == 2 for one in answers)
    return entry if pairs or isinstance(entry.get("recipe"), dict) else None
