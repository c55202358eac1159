"""Files of conversations in JSON or JSONL: where each record lies, and any record by its number.

A file is walked through once, and what is kept is a table of byte positions (`scan_json`); a record is read
from its bytes when it is asked for (`JsonRecords`). So a file of any size takes no memory, and an error
names the record's line.
"""

import codecs
import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from unitoken_jax.sequence.conversation import Conversation, parse_conversation
from unitoken_jax.sequence.errors import ConversationError, RowError, row_errors
from unitoken_jax.storage.paths import RandomFile, as_path

MAX_RECORD = 64 << 20  # bytes of one JSON record; what is longer is no conversation
_BLOCK = 1 << 20  # bytes read at a time; an error costs a look at all of them
_SPACE = b" \t\r\n"
_OBJECT = re.compile(r'\{[ \t\r\n]*(?:"|\Z)')  # where an object begins, or may in the next block
_LONGEST_TOKEN = 16  # characters that a block may cut in two, as of -Infinity or \u1234; a text is longer
_TEXT_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\(?:.|\Z))*+("|\Z)|[\[{]|[\]}]', re.DOTALL)


def read_conversations(
    path: str | os.PathLike,
    images: str | os.PathLike = "",
    on_error: Callable[[RowError], None] | None = None,
    need_answers: bool = True,
) -> list[Conversation]:
    """Every conversation of a JSON or JSONL file.

    Args:
      path: the file, local or remote.
      images: folder of the images' relative paths; empty: the file's own.
      on_error: called with each bad conversation's error, which is then left out; None raises the first.
      need_answers: refuse a conversation that ends with a question (nothing to learn).
    """
    path = as_path(path)
    root = as_path(images) if str(images) else path.parent
    records = JsonRecords(os.fspath(path), scan_json(path))
    conversations = []
    for i in range(len(records)):
        try:
            record = records.read(i)
            conversations.append(parse_conversation(record, records.location(i), root, need_answers))
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
    if not conversations:
        raise ConversationError(f"{path}: holds no usable conversation")
    return conversations


class JsonRecords:
    """The records of a JSON or JSONL file; `table` int64[N, 3] is what `scan_json` says of it."""

    def __init__(self, path: str, table: np.ndarray):
        self.path, self._table, self._file = path, table, RandomFile(path)

    def __len__(self) -> int:
        return len(self._table)

    def location(self, i: int) -> str:
        """ "file:line" of record `i`."""
        return f"{self.path}:{abs(self._table[i, 2])}"

    def read(self, i: int) -> Any:
        """The record as JSON says it. Raises ConversationError where it is not JSON."""
        start, end, line = self._table[i].tolist()
        # What reading the file raises is not this row's fault, and stays as it is.
        data = self._file.read(start, end - start) if end - start <= MAX_RECORD else b""
        with row_errors(self.location(i)):
            if end - start > MAX_RECORD:
                raise ConversationError(
                    f"a record of {end - start} bytes, more than {MAX_RECORD}: split it; images go into "
                    "files, not into the text",
                    "json",
                )
            if line < 0:
                problem = (
                    "text after the closing ]" if data[:1] == b"]" else "expected , or ] after an element"
                )
                raise ConversationError(
                    f"not valid JSON ({problem}): {end - start} bytes, up to the next conversation or to the "
                    "file's end, are not read",
                    "json",
                )
            return decode_json(data)


def decode_json(data: bytes) -> Any:
    """The JSON value in `data`. Raises ConversationError, without saying where."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConversationError(f"not UTF-8 ({error}); save it as UTF-8", "encoding") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        raise ConversationError(f"not valid JSON ({error}) in {len(data)} bytes", "json") from error


def scan_json(path: str | os.PathLike) -> np.ndarray:
    """int64[N, 3]: first byte, end and line of each record in a JSON or JSONL file.

    A file that begins with `[` is an array; its elements may span lines. Any other holds one record a line,
    blank lines apart, or (a `.json` file) one object; so does a `.jsonl` file that does not end with `]`.

    What is not JSON becomes a record too: reading it says so, with its line. In an array it reaches up to the
    next conversation that can be found, so that one broken element costs no other (`_elements`). The line is
    negative in a record that is not an element of its array: what stands where a comma should, or the closing
    bracket with the text after it.
    """
    file = as_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no conversation file at {path}")
    suffix = pathlib.PurePath(path).suffix
    with file.open("rb") as opened:
        beginning = opened.read(4096)
        start = len(beginning) - len(beginning.removeprefix(codecs.BOM_UTF8))
        first_sign = beginning[start:].lstrip(_SPACE)[:1]
        is_array = first_sign == b"[" and (suffix != ".jsonl" or _last_sign(opened) == b"]")
        opened.seek(start)
        if is_array:
            return np.array(list(_elements(opened, start)), np.int64).reshape(-1, 3)
        lines = _lines(opened, start)
        if first_sign == b"{" and suffix == ".json" and len(lines) > 1:
            opened.seek(start)
            scanner = _Scanner(opened, start)
            if scanner.take_value() and not scanner.peek():
                return np.array([[start, scanner.offset, 1]], np.int64)
    return lines


def _last_sign(file: BinaryIO) -> bytes:
    """The last byte of `file` that is not white space, as far as its last 4 KiB say."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    return file.read().rstrip(_SPACE)[-1:]


def _lines(file: BinaryIO, start: int) -> np.ndarray:
    """The table of a file's lines that are not blank."""
    blocks: list[np.ndarray] = []
    offset, last_byte = start, b""
    while block := file.read(_BLOCK):
        blocks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset)
        offset, last_byte = offset + len(block), block[-1:]
    if last_byte not in (b"", b"\n"):
        blocks.append(np.array([offset]))
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

    After a syntax error it goes on at the next conversation: an object with "conversations" that the parser
    reads to its end. That may stand within what is broken: where a bracket is missing, the elements behind
    it look like parts of the broken one. It never stands within a text: there `{"` is written `{\\"`, and
    behind a text that ends with `{` comes no name. An error between elements or behind them is a record with
    a negative line, as `scan_json` describes.
    """
    scanner = _Scanner(file, start)
    scanner.take("[")
    while True:
        first, line = scanner.next_value()
        if scanner.take("]"):  # also right after a comma: files written by hand have one too many
            if not scanner.peek():
                return
            line = -scanner.next_value()[1]
            scanner.skip_to_conversation()
        elif scanner.take_value():
            yield first, scanner.offset, line
            if scanner.take(",") or scanner.peek() == "]":
                continue
            first, line = scanner.next_value()
            line = -line
            scanner.skip_to_conversation()
        else:
            scanner.skip_to_conversation(after=1)
        yield first, scanner.offset, line
        if not scanner.peek():
            return


class _Scanner:
    """Walks over JSON text in a file by whole values, with little of it in memory."""

    def __init__(self, file: BinaryIO, start: int):
        self._file, self._text, self._at = file, "", 0
        self.offset, self._line = start, 1  # byte of the file, and line, of the character `_text[_at]`
        # Bytes that are not UTF-8 stay in the record as they are; reading the record reports them.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        # Numbers stay as they are written: there are some that int() refuses.
        self._json, self._at_end, self._block = json.JSONDecoder(parse_int=str), False, _BLOCK

    def _read_more(self) -> bool:
        """Drops the text passed over and reads the next block; False at the file's end."""
        if self._at_end:
            return False
        block = self._file.read(self._block)
        self._at_end = not block
        self._text = self._text[self._at :] + self._decoder.decode(block, final=not block)
        self._at = 0
        return True

    def _advance(self, end: int) -> None:
        passed = self._text[self._at : end]
        self.offset += len(passed.encode("utf-8", "surrogateescape"))
        self._line += passed.count("\n")
        self._at = end

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n":
                end += 1
            self._advance(end)
            if end < len(self._text):
                return self._text[end]
            if not self._read_more():
                return ""

    def take(self, sign: str) -> bool:
        """Passes over `sign` if it comes next."""
        if self.peek() != sign:
            return False
        self._advance(self._at + 1)
        return True

    def next_value(self) -> tuple[int, int]:
        """(byte, line) of what comes next."""
        self.peek()
        return self.offset, self._line

    def take_value(self) -> bool:
        """Passes over one JSON value; False where there is none, or a whole list of conversations."""
        try:
            value, end = self._decode() or (None, None)
            if isinstance(value, list) and any(map(_is_conversation, value)):
                return False
        except RecursionError:  # too deep for the parser; where it ends can be found all the same
            while (end := _nested_end(self._text, self._at)) is None and self._read_on():
                pass
        if end is None:
            return False
        self._advance(end)
        return True

    def skip_to_conversation(self, after: int = 0) -> None:
        """Passes over `after` characters, and what comes before the next conversation, or all there is."""
        self._advance(min(self._at + after, len(self._text)))
        while True:
            if (beginning := _OBJECT.search(self._text, self._at)) is None:
                self._advance(len(self._text))
                if not self._read_more():
                    return
                continue
            self._advance(beginning.start())
            with contextlib.suppress(RecursionError):
                value, _ = self._decode() or (None, None)
                if _is_conversation(value):
                    return
            self._advance(self._at + 1)

    def _decode(self) -> tuple[Any, int] | None:
        """The JSON value that comes next, and where it ends in `_text`; None where there is none."""
        self._block = _BLOCK
        while True:
            try:
                return self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                certain = error.pos + _LONGEST_TOKEN < len(self._text)
                if certain and not error.msg.startswith("Unterminated string"):
                    return None
            if not self._read_on():  # perhaps it only goes on in the next block
                return None

    def _read_on(self) -> bool:
        """Reads more and more of a long value; False where there is no more, or it is too long."""
        self._block *= 2
        return len(self._text) - self._at <= 2 * MAX_RECORD and self._read_more()


def _is_conversation(value: Any) -> bool:
    """Whether a JSON value looks like the record of a conversation."""
    return isinstance(value, dict) and "conversations" in value


def _nested_end(text: str, start: int) -> int | None:
    """Where the brackets that open at `text[start]` are closed again; None where they are not."""
    depth = 0
    for sign in _TEXT_OR_BRACKET.finditer(text, start):
        if sign[0][0] == '"':
            if not sign[1]:  # the text is cut off here
                return None
            continue
        depth += 1 if sign[0] in "[{" else -1
        if depth <= 0:
            return sign.end()
    return None
