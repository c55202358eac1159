"""Folders of images with a file that says what they show, as Hugging Face's `imagefolder` has them.

    photos/captions.csv          file_name,text            the file: CSV, or a JSON object a line, with the
    photos/garden/1.png          garden/1.png,a red door   image's name relative to the file

A row has `file_name`, and a caption (`text`, `caption` or `prompt`), or `question` and `answer`, or both;
other columns are passed over. A caption becomes a conversation that describes the image, one that draws it,
or both of them, one after the other, as `SourceConfig.captions` says; a question becomes one that answers.
"""

import array
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from unitoken_jax.config import SourceConfig
from unitoken_jax.data.csv_file import CsvRecords, scan_csv
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION
from unitoken_jax.sequence.conversation_file import JsonRecords, scan_json
from unitoken_jax.sequence.errors import ConversationError, RowError, row_errors
from unitoken_jax.storage.paths import as_path

METADATA = ("captions.csv", "metadata.csv", "metadata.jsonl")  # what the file is called in a folder
CAPTIONS = ("text", "caption", "prompt")
DESCRIBE_QUESTION = "describe the image"
TASKS = ("", "describe", "draw", "answer")  # by number; the first is that of a row which cannot be used
_BEGINNING = 1 << 16  # bytes of a JSON file whose first record says of which kind it is


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """What a row says of the image `file_name`; a text that it lacks is empty."""

    file_name: str
    caption: str
    question: str
    answer: str

    def tasks(self, captions: str) -> list[str]:
        """The conversations that it becomes; `captions` as in SourceConfig."""
        described = [task for task in ("describe", "draw") if self.caption and captions in (task, "both")]
        return described + ["answer"] * bool(self.question)

    def conversation(self, task: str) -> dict:
        """The record of one of them, in the format of sequence/conversation.py."""
        question, answer = {
            "describe": (f"<|image|>{DESCRIBE_QUESTION}", self.caption),
            "draw": (f"{TEXT_TO_IMAGE_INSTRUCTION}{self.caption}", "<|image|>"),
            "answer": (f"<|image|>{self.question}", self.answer),
        }[task]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"image": [self.file_name], "conversations": turns}


class ImageFolderRecords:
    """The conversations of an image folder; `table` int64[N, 4] is what `scan_image_folder` says of it."""

    def __init__(self, path: str, table: np.ndarray):
        """`path` is the file beside the images. Raises ConversationError where a column is missing."""
        self._rows, self._tasks = _open_rows(path, table[:, :3]), table[:, 3]

    def __len__(self) -> int:
        return len(self._tasks)

    def location(self, i: int) -> str:
        """ "file:line (task)" of record `i`."""
        task = TASKS[self._tasks[i]]
        return self._rows.location(i) + (f" ({task})" if task else "")

    def image(self, i: int) -> CaptionedImage:
        """The row that record `i` is of. Raises ConversationError for one that cannot be used."""
        with row_errors(self.location(i)):
            return _captioned(self._rows.read(i))

    def read(self, i: int) -> dict:
        """The conversation. Raises ConversationError for a row that cannot be used."""
        return self.image(i).conversation(TASKS[self._tasks[i]])


def scan_image_folder(config: SourceConfig) -> np.ndarray:
    """int64[N, 4]: first byte, end and line of the row of each conversation, and which of TASKS it is.

    A row that cannot be used is one record: reading it says why, with its line.
    """
    path = config.path
    table = scan_csv(path) if path.endswith(".csv") else scan_json(path)
    rows = _open_rows(path, table)
    records = array.array("q")
    for row, position in enumerate(table.tolist()):
        try:
            tasks = _captioned(rows.read(row)).tasks(config.captions)
        except RowError:
            tasks = [""]
        for task in tasks:
            records.extend((*position, TASKS.index(task)))
    return np.array(records, np.int64).reshape(-1, 4)


def _open_rows(path: str, table: np.ndarray) -> CsvRecords | JsonRecords:
    """The rows of a file, each a dict."""
    if not path.endswith(".csv"):
        return JsonRecords(path, table)
    rows = CsvRecords(path, table)
    with row_errors(f"{path}:1"):
        _check_columns(rows.columns)
    return rows


def _captioned(row: Any) -> CaptionedImage:
    """What a row says. Raises ConversationError, without saying where."""
    if not isinstance(row, dict):
        raise ConversationError('expected an object with "file_name"')
    row = {column: value for column, value in row.items() if value is not None}
    caption = _check_columns(list(row))
    for column in ("file_name", caption, "question", "answer"):
        if not isinstance(row.get(column, ""), str):
            raise ConversationError(f'"{column}" is {row[column]!r}; expected text')
    name, *texts = (row.get(column, "").strip() for column in ("file_name", caption, "question", "answer"))
    if not name:
        raise ConversationError("empty file_name: write the image's name")
    if bool(texts[1]) != bool(texts[2]):
        empty, other = ("question", "answer") if texts[2] else ("answer", "question")
        raise ConversationError(f"empty {empty}, but there is the {other} {texts[1] or texts[2]!r}")
    if not any(texts):
        empty = " and ".join(column for column in (caption, "question") if column in row)
        raise ConversationError(f"empty {empty}: write what the image shows, or leave the row out")
    return CaptionedImage(name, *texts)


def _check_columns(columns: list[str]) -> str:
    """The column of captions, "" for none. Raises ConversationError, without saying where."""
    have = f"has {', '.join(columns) or 'nothing'}"
    if "file_name" not in columns:
        raise ConversationError(f"no column file_name, with the image's name: it {have}")
    captions = [column for column in CAPTIONS if column in columns]
    if len(captions) > 1:
        raise ConversationError(f"captions in both {' and '.join(captions)}: keep one of these columns")
    questions = [column for column in ("question", "answer") if column in columns]
    if len(questions) == 1:
        raise ConversationError(f"question and answer belong together: it {have}")
    if not captions + questions:
        raise ConversationError(
            f"no column with captions ({', '.join(CAPTIONS)}), nor question and answer: it {have}"
        )
    return captions[0] if captions else ""


def metadata_files(folder: str | os.PathLike, split: str = "train") -> list[pathlib.Path]:
    """The files in a folder that say what its images show; if there are none, those in its folder `split`."""
    for path in (as_path(folder), as_path(folder) / split):
        if files := [path / name for name in METADATA if (path / name).is_file()]:
            return files
    return []


def metadata_file(path: str, split: str) -> str:
    """The file that says what images show: `path` itself, or the one in that folder.

    Raises FileNotFoundError where there is none, and ValueError where there are several.
    """
    if not as_path(path).is_dir():
        return path
    files = metadata_files(path, split)
    if not files:
        raise FileNotFoundError(
            f"{path}, a folder, holds none of {', '.join(METADATA)}, which say what its images show (one "
            'of ArrayRecord files has kind "array_record")'
        )
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise ValueError(f"{path} holds both {names}: give the path of the one that is meant")
    return os.fspath(files[0])


def looks_like_metadata(path: str) -> bool:
    """Whether the first record of a JSON or JSONL file names an image's file, and is no conversation."""
    file = as_path(path)
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        text = opened.read(_BEGINNING).decode("utf-8", "replace")
    try:
        record, _ = json.JSONDecoder().raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "file_name" in record and "conversations" not in record
