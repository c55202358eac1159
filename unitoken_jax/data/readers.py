"""The records of a data set, whatever holds them: JSON or JSONL, ArrayRecord, or a TFDS data set.

Every kind has a length and random access, `records.read(i)`, to a raw conversation (a dict in the public
format, see conversation.py) and to words for messages on where it stands. Nothing holds conversations in
memory: a JSON file is read through a table of byte positions.
"""

import bisect
import codecs
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import runpy
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from unitoken_jax.config import SourceConfig
from unitoken_jax.sequence.conversation import ConversationError
from unitoken_jax.storage.paths import RandomFile, as_path, ends_digest, expand

MAX_RECORD = 64 << 20  # bytes of one JSON record; what is longer is no conversation
_BLOCK = 16 << 20  # bytes read at a time
_SPACE = b" \t\r\n"


def kind_of(config: SourceConfig) -> str:
    """ "json", "array_record" or "tfds": as `config.kind` says, or as its path looks."""
    if config.kind != "auto":
        return config.kind
    path = config.path
    if path.endswith((".json", ".jsonl")):
        return "json"
    if "array_record" in path:
        return "array_record"
    looks_like_tfds = os.path.exists(os.path.join(path, "dataset_info.json"))
    return "tfds" if looks_like_tfds or config.mapping else "json"


class JsonRecords:
    """A JSON or JSONL file. `table` int64[N, 3]: first byte, end, line of each record (`scan_json`)."""

    def __init__(self, path: str, table: np.ndarray):
        self.path, self._table, self._file = path, table, RandomFile(path)

    def __len__(self) -> int:
        return len(self._table)

    def where(self, i: int) -> str:
        """ "file:line" of record `i`."""
        return f"{self.path}:{self._table[i, 2]}"

    def read(self, i: int) -> Any:
        """The record as JSON says it. Raises ConversationError where it is not JSON."""
        start, end, _ = self._table[i].tolist()
        if end - start > MAX_RECORD:
            raise ConversationError(
                f"{self.where(i)}: a record of {end - start} bytes, more than {MAX_RECORD}: split it; "
                "images go into files, not into the text",
                "json",
            )
        return decode_json(self._file.read(start, end - start), self.where(i))


class ArrayRecords:
    """ArrayRecord files whose records are JSON conversations in UTF-8."""

    def __init__(self, paths: list):
        self._paths = [os.fspath(path) for path in paths]
        self._readers: list = [None] * len(self._paths)
        self._ends = np.cumsum([count_records(path) for path in self._paths]).tolist()

    def __getstate__(self) -> dict:
        return {"paths": self._paths, "ends": self._ends}

    def __setstate__(self, state: dict) -> None:
        self._paths, self._ends = state["paths"], state["ends"]
        self._readers = [None] * len(self._paths)

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, i: int) -> tuple[int, int]:
        """(file, record in it) of record `i`."""
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def where(self, i: int) -> str:
        shard, place = self.locate(i)
        return f"{self._paths[shard]}:record {place}"

    def raw(self, i: int) -> bytes:
        """The record's bytes. Raises ConversationError where the file is damaged there."""
        shard, place = self.locate(i)
        if self._readers[shard] is None:
            self._readers[shard] = array_record_module().ArrayRecordReader(self._paths[shard])
        try:
            (data,) = self._readers[shard].read([place])
        except (RuntimeError, IndexError, ValueError) as error:
            raise ConversationError(f"{self.where(i)}: cannot be read ({error})", "json") from None
        return data

    def read(self, i: int) -> Any:
        return decode_json(self.raw(i), self.where(i))


class TfdsRecords:
    """A TFDS data set through `tfds.data_source`, each example made a conversation by a mapping function.

    `path` is a prepared data set's folder or a name TFDS knows ("name:1.0.0", looked for in TFDS_DATA_DIR).
    Encoded images reach the mapping as bytes. Without a mapping an example must have `conversations`, the
    JSON text of the turns, and may have `image`: an image, or a list of them.
    """

    def __init__(self, path: str, split: str, mapping: str):
        self.path, self.split, self.mapping = path, split, mapping
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        folder = os.path.isdir(self.path)
        try:
            builder = tfds.builder_from_directory(self.path) if folder else tfds.builder(self.path)
            self.info = builder.info
            raw = {name: tfds.decode.SkipDecoding() for name in _image_features(tfds, builder.info.features)}
            self._examples = builder.as_data_source(self.split, decoders=raw or None)
        except Exception as error:  # tfds raises many kinds for a missing set or split, or unprepared data
            first = (str(error).splitlines() or [type(error).__name__])[0]  # more would list every set
            raise ConversationError(
                f"{self.path}: TFDS cannot open split {self.split!r} of it ({first}); expected the folder of "
                "a prepared data set, or the name of one in TFDS_DATA_DIR"
            ) from None
        self._map = mapping_function(self.mapping) if self.mapping else _as_conversation

    def __getstate__(self) -> dict:
        return {"path": self.path, "split": self.split, "mapping": self.mapping}

    def __setstate__(self, state: dict) -> None:
        type(self).__init__(self, **state)

    def __len__(self) -> int:
        return len(self._examples)

    def where(self, i: int) -> str:
        return f"{self.path}[{self.split}]:example {i}"

    def read(self, i: int) -> Any:
        try:
            return self._map(self._examples[i])
        except Exception as error:  # the mapping is the user's own code
            raise ConversationError(
                f"{self.where(i)}: the mapping {self.mapping or 'of fields conversations and image'} failed "
                f"({type(error).__name__}: {error})"
            ) from None


Records = JsonRecords | ArrayRecords | TfdsRecords


def open_records(config: SourceConfig, table: np.ndarray | None = None) -> Records:
    """The records of a source; `table` is a JSON file's (`scan_json`)."""
    kind = kind_of(config)
    if kind == "tfds":
        return TfdsRecords(config.path, config.split, config.mapping)
    if kind == "array_record":
        return ArrayRecords(expand(config.path, "array_record"))
    return JsonRecords(config.path, scan_json(config.path) if table is None else table)


def records_digest(config: SourceConfig) -> str:
    """A fingerprint of the records that are not in a JSON file (those are hashed whole, see index.py)."""
    if kind_of(config) == "array_record":
        return ends_digest(expand(config.path, "array_record"))
    records = TfdsRecords(config.path, config.split, config.mapping)
    info = records.info
    shards = {name: split.shard_lengths for name, split in info.splits.items()}
    source = inspect.getsource(inspect.getmodule(records._map) or records._map) if config.mapping else ""
    about = [info.full_name, shards, config.split, config.mapping, source]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def decode_json(data: bytes, where: str) -> Any:
    """The JSON value in `data`. Raises ConversationError beginning with `where`."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConversationError(f"{where}: not UTF-8 ({error}); save it as UTF-8", "encoding") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConversationError(f"{where}: not valid JSON ({error})", "json") from None


def array_record_module() -> Any:
    """The ArrayRecord library, loaded where it is needed."""
    from array_record.python import array_record_module

    return array_record_module


def count_records(path: str) -> int:
    """Records in an ArrayRecord file. Raises ConversationError where it was cut off: it has no index then."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no ArrayRecord file at {path}")
    count = array_record_module().ArrayRecordReader(path).num_records() if os.path.getsize(path) else 0
    if not count:
        raise ConversationError(
            f"{path} holds no complete record: it is empty or was cut off (an ArrayRecord file's index comes "
            "last); copy or write it again"
        )
    return count


def mapping_function(name: str) -> Callable[[dict], Any]:
    """The function `name` says: "package.module:function" or "path/file.py:function"."""
    module, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(f"mapping {name!r}: expected package.module:function or file.py:function")
    if module.endswith(".py"):
        found = runpy.run_path(module).get(function)
    else:
        found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ValueError(f"mapping {name!r}: {module} has no function {function!r}")
    return found


def _image_features(tfds: Any, features: Any) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]


def _as_conversation(example: dict) -> dict:
    """An example with fields `conversations` and perhaps `image` as a record."""
    record = {"conversations": json.loads(example["conversations"])}
    images = example.get("image")
    if images is not None:
        record["image"] = [images] if isinstance(images, bytes) else [bytes(image) for image in images]
    return record


def scan_json(path: str) -> np.ndarray:
    """int64[N, 3]: first byte, end and line of each record in a JSON or JSONL file.

    A file that begins with `[` is an array; its elements may span lines. Any other holds one record a line,
    blank lines apart, or (a `.json` file) one object. What is not JSON becomes a record too: reading it says
    so, with its line.
    """
    file = as_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no conversation file at {path}")
    with file.open("rb") as opened:
        first = opened.read(4096)
        start = len(first) - len(first.removeprefix(codecs.BOM_UTF8))
        head = first[start:].lstrip(_SPACE)[:1]
        opened.seek(start)
        if head == b"[":
            return np.array(list(_elements(opened, start)), np.int64).reshape(-1, 3)
        lines = _lines(opened, start)
    if head == b"{" and pathlib.PurePath(path).suffix == ".json" and len(lines) > 1:
        whole = RandomFile(path).read(start, MAX_RECORD + 1)
        try:
            json.loads(whole)
        except (ValueError, RecursionError):
            return lines  # lines of objects under the wrong suffix, or broken: the lines will say
        return np.array([[start, start + len(whole), 1]], np.int64)
    return lines


def _lines(file: BinaryIO, start: int) -> np.ndarray:
    """The table of a file's lines that are not blank."""
    blocks: list[np.ndarray] = []
    place, blank = start, b""
    while block := file.read(_BLOCK):
        blocks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + place)
        place, blank = place + len(block), block[-1:]
    if blank not in (b"", b"\n"):
        blocks.append(np.array([place]))
    ends = np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
    starts = np.concatenate([[start], ends + 1])[: len(ends)]
    table = np.stack([starts, ends, np.arange(1, len(ends) + 1)], 1).astype(np.int64).reshape(-1, 3)
    keep = np.ones(len(table), bool)
    for row in np.flatnonzero(ends - starts < 64):  # a blank line longer than that will not parse: it shows
        file.seek(int(starts[row]))
        keep[row] = bool(file.read(int(ends[row] - starts[row])).strip(_SPACE))
    return table[keep]


def _elements(file: BinaryIO, start: int) -> Iterator[tuple[int, int, int]]:
    """(first byte, end, line) of each element of a JSON array, read block by block.

    A syntax error ends it, with what is left as the last record: there is no way to go on.
    """
    scanner = _Scanner(file, start)
    scanner.take("[")
    if scanner.peek() == "]":
        scanner.take("]")
    else:
        while True:
            first, line = scanner.mark()
            if not scanner.value():
                yield first, scanner.end(), line
                return
            yield first, scanner.place(), line
            if scanner.peek() == "]":
                scanner.take("]")
                break
            if not scanner.take(","):
                line = scanner.mark()[1]
                yield scanner.place(), scanner.end(), line
                return
    if scanner.peek():
        first, line = scanner.mark()
        yield first, scanner.end(), line


class _Scanner:
    """Walks over JSON text in a file by whole values, with little of it in memory."""

    def __init__(self, file: BinaryIO, start: int):
        self._file, self._text, self._at = file, "", 0
        self._byte, self._line = start, 1  # of the text's place `_at`
        # Bytes that are not UTF-8 stay in the record as they are; reading the record reports them.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json, self._done, self._block = json.JSONDecoder(), False, _BLOCK

    def _more(self) -> bool:
        if self._done:
            return False
        block = self._file.read(self._block)
        self._done = not block
        self._text = self._text[self._at :] + self._decoder.decode(block, final=not block)
        self._at = 0
        return True

    def _pass(self, end: int) -> None:
        passed = self._text[self._at : end]
        self._byte += len(passed.encode("utf-8", "surrogateescape"))
        self._line += passed.count("\n")
        self._at = end

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n":
                end += 1
            self._pass(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def take(self, sign: str) -> bool:
        """Passes over `sign` if it comes next."""
        if self.peek() != sign:
            return False
        self._pass(self._at + 1)
        return True

    def mark(self) -> tuple[int, int]:
        """(byte, line) of what comes next."""
        self.peek()
        return self._byte, self._line

    def place(self) -> int:
        return self._byte

    def value(self) -> bool:
        """Passes over one JSON value; False where there is none."""
        self._block = _BLOCK
        while True:
            try:
                _, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                self._block *= 2  # perhaps it only goes on in the next block
                if len(self._text) - self._at > 2 * MAX_RECORD or not self._more():
                    return False
                continue
            self._pass(end)
            return True

    def end(self) -> int:
        """The file's last byte, plus one."""
        return self._file.seek(0, os.SEEK_END)
