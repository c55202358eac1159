"""Measuring a data set, in chunks of rows: each chunk is one file, so a stopped build goes on where it was,
and any number of processes, on any number of machines, can share the work.

As a program (`python -m unitoken_jax.data.index_build`) it is one worker of a build; the spec comes pickled
on standard input from the process that started it. Workers are programs, not forks or spawned copies: those
need a guarded main module, and a notebook has none.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from unitoken_jax.config import ModelConfig, SourceConfig
from unitoken_jax.data.image_store import OnError, is_tar, open_images, scan_tars
from unitoken_jax.data.readers import TEXT_FILES, kind_of, open_records, scan_records
from unitoken_jax.data.workers import deaf_to_stop_signals
from unitoken_jax.sequence import build
from unitoken_jax.sequence.conversation import Conversation, parse_conversation
from unitoken_jax.sequence.errors import ConversationError, RowError, legible
from unitoken_jax.sequence.image import ImageError
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_write, save_array, write_text

CHUNK = 4096  # rows measured between two looks at the clock, and lost at most when stopped
ALONE = 32768  # fewer rows are measured faster than workers start
LENGTHS, RECORDS, IMAGES, BAD = "lengths.npy", "records.npy", "images.npy", "bad.jsonl"
IMAGE_REASONS = ("missing_image", "corrupt_image", "missing_codes")


@dataclasses.dataclass(frozen=True)
class InvalidRow:
    """A row that cannot be used: its number, "file:line", the kind of reason, and the whole message.

    `cause` is what was raised, where it is kept: the file of bad rows does not hold it.
    """

    row: int
    where: str
    reason: str
    message: str
    cause: RowError | None = dataclasses.field(default=None, compare=False, repr=False)

    def error(self, more: str = "") -> RowError:
        """The error of this row, whose message ends with `more`."""
        kind = ImageError if self.reason in IMAGE_REASONS else ConversationError
        error = kind(self.message + more, self.reason)
        error.__cause__ = self.cause
        return error


@dataclasses.dataclass(frozen=True)
class IndexBuildSpec:
    """What measuring needs; chunks are gathered in `folder`."""

    config: SourceConfig
    model: ModelConfig
    tokenizer: Tokenizer
    folder: pathlib.Path
    key: str

    def chunk(self, number: int) -> pathlib.Path:
        return self.folder / f"chunk-{number:06}.npz"


class LengthIndexer:
    """Measures rows of the data set that `spec` names."""

    def __init__(self, spec: IndexBuildSpec, folder: pathlib.Path):
        """`folder` holds the tables that say where records and images lie."""
        self.spec = spec
        self.records = open_records(spec.config, read_table(folder / RECORDS))
        self.images = open_images(spec.config.images, spec.config.path, read_table(folder / IMAGES))

    def rows(self, rows: Sequence[int]) -> tuple[np.ndarray, list[InvalidRow]]:
        """(int32[n, 5] as in index.py, the bad ones)."""
        table, bad = np.zeros((len(rows), 5), np.int32), list[InvalidRow]()
        for i, row in enumerate(rows):
            try:
                table[i] = self._row(row)
            except RowError as error:
                cause = None if bad else error  # one is shown; its frames hold what the row held
                where = self.records.location(row)
                bad.append(InvalidRow(int(row), where, error.reason, str(error), cause))
        return table, bad

    def _row(self, row: int) -> tuple[int, int, int, int, int]:
        conversation = parse_conversation(self.records.read(row), self.records.location(row), self.images)
        return measure(conversation, self.spec.tokenizer, self.spec.model)


def measure(
    conversation: Conversation, tokenizer: Tokenizer, model: ModelConfig
) -> tuple[int, int, int, int, int]:
    """The ExampleSize of one conversation, and its tokens without the prompt, or 0 where that cannot go."""
    sizes = build.image_sizes(conversation)
    whole = build.example_size(conversation, tokenizer, model, sizes)
    dropped = 0
    if build.is_text_to_image(conversation):
        dropped = build.example_size(conversation, tokenizer, model, sizes, drop_prompt=True).tokens
    return *whole, dropped


def measure_all(
    spec: IndexBuildSpec, workers: int | None, share: tuple[int, int], on_error: OnError | None
) -> None:
    """Measures every chunk that is not there yet. Raises only for what is wrong with whole files.

    Args:
      workers: processes that measure; None: one a core if there is much to do.
      share: (index, count) of this process among those that build the index together.
      on_error: called with the error of each damaged tar shard; None raises it.
    """
    spec.folder.mkdir(parents=True, exist_ok=True)
    prepare(spec, on_error)
    indexer = LengthIndexer(spec, spec.folder)
    rows = len(indexer.records)
    if not rows:
        raise ConversationError(f"{spec.config.path}: holds no usable conversation")
    chunks = -(-rows // CHUNK)
    if workers is None:
        workers = cores() if rows > ALONE else 1
    workers = min(workers, chunks)
    name = pathlib.PurePath(spec.config.path).name
    with tqdm(total=rows, unit="row", desc=f"measuring {name}", disable=None, leave=False) as bar:
        if workers <= 1:
            for _ in chunks_of(spec, indexer, *share):
                bar.update(min(CHUNK, rows - bar.n))
        else:
            _in_processes(spec, workers, share, chunks, bar)


def cores() -> int:
    """Cores this process may use, as far as the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(spec: IndexBuildSpec, on_error: OnError | None) -> None:
    """Writes the tables that say where the records of a text file and the images of tar shards lie."""
    if kind_of(spec.config) in TEXT_FILES and not (spec.folder / RECORDS).exists():
        save_array(spec.folder / RECORDS, scan_records(spec.config))
    if is_tar(spec.config.images) and not (spec.folder / IMAGES).exists():
        save_array(spec.folder / IMAGES, scan_tars(spec.config.images, on_error))


def chunks_of(spec: IndexBuildSpec, indexer: LengthIndexer, index: int, count: int) -> Iterator[int]:
    """Measures every chunk that is not there, this process's share of them first; yields after each."""
    rows = len(indexer.records)
    chunks = -(-rows // CHUNK)
    first = chunks * index // count
    for number in [*range(first, chunks), *range(first)]:
        path = spec.chunk(number)
        if not path.exists():
            table, bad = indexer.rows(range(number * CHUNK, min((number + 1) * CHUNK, rows)))
            notes = np.frombuffer("".join(_line(invalid) for invalid in bad).encode(), np.uint8)
            atomic_write(path, functools.partial(np.savez, lengths=table, bad=notes))
        yield number


def _in_processes(spec: IndexBuildSpec, workers: int, share: tuple[int, int], chunks: int, bar: Any) -> None:
    """Measures with `workers` processes, and shows how far they are."""
    index, count = share
    command = [sys.executable, "-m", "unitoken_jax.data.index_build"]
    running = []
    try:
        for worker in range(workers):
            errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed below, whatever happens)
            with deaf_to_stop_signals():
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors)
            running.append((process, errors))
            assert process.stdin is not None
            with process.stdin as stdin:
                pickle.dump((spec, index * workers + worker, count * workers, os.getpid()), stdin)
        waiting = dict(running)
        while waiting:
            for process in list(waiting):
                try:
                    code = process.wait(0.5 / workers)
                except subprocess.TimeoutExpired:
                    continue
                errors = waiting.pop(process)
                if code:
                    errors.seek(0)
                    raise RuntimeError(
                        f"a process that measures {spec.config.path} failed (exit {code}); what it had done "
                        "is kept:\n" + errors.read().decode(errors="replace")[-2000:]
                    )
            done = sum(1 for _ in spec.folder.glob("chunk-*.npz"))
            bar.update(round(bar.total * done / chunks) - bar.n)
    finally:
        for process, errors in running:
            process.kill()
            process.wait()
            errors.close()


def main() -> None:
    """One worker; ends when the process that started it has."""
    spec, index, count, parent = pickle.load(sys.stdin.buffer)
    for _ in chunks_of(spec, LengthIndexer(spec, spec.folder), index, count):
        if os.getppid() != parent:
            return


def join(spec: IndexBuildSpec, folder: pathlib.Path) -> None:
    """Writes the index's arrays into `folder`, from all chunks and tables of `spec`."""
    rows = len(open_records(spec.config, read_table(spec.folder / RECORDS)))
    chunks = range(-(-rows // CHUNK))
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False}

    def lengths(out: BinaryIO) -> None:  # not through a memory map: a full disk would end the process
        np.lib.format.write_array_header_1_0(out, header | {"shape": (rows, 5)})
        for number in chunks:
            with np.load(spec.chunk(number)) as chunk:
                out.write(chunk["lengths"].tobytes())

    def bad(out: BinaryIO) -> None:
        for number in chunks:
            with np.load(spec.chunk(number)) as chunk:
                out.write(chunk["bad"].tobytes())

    atomic_write(folder / LENGTHS, lengths)
    atomic_write(folder / BAD, bad)
    for name in (RECORDS, IMAGES):
        if (spec.folder / name).exists():
            shutil.copyfile(spec.folder / name, folder / name)  # another process may still read it


def measure_again(spec: IndexBuildSpec, path: pathlib.Path) -> list[InvalidRow]:
    """Measures an index's bad rows again (a missing image may be there now); those that still are bad."""
    before = read_bad(path / BAD)
    rows = [invalid.row for invalid in before]
    table, bad = LengthIndexer(spec, path).rows(rows)
    if bad != before:
        lengths = np.load(path / LENGTHS)
        lengths[rows] = table
        save_array(path / LENGTHS, lengths)
        write_bad(path / BAD, bad)
    return bad


def read_bad(path: pathlib.Path) -> list[InvalidRow]:
    """The rows a bad.jsonl lists. Raises ValueError where it is damaged."""
    with _index_file(path), open(path, encoding="utf-8") as file:
        return [InvalidRow(**json.loads(line)) for line in file]


def write_bad(path: pathlib.Path, bad: list[InvalidRow]) -> None:
    """Lists bad rows in file `path`, one JSON object a line."""
    write_text(path, "".join(_line(invalid) for invalid in bad))


def _line(bad: InvalidRow) -> str:
    names = ("row", "where", "reason", "message")
    return json.dumps({name: getattr(bad, name) for name in names}) + "\n"


def read_table(path: pathlib.Path) -> np.ndarray | None:
    """A table of an index, mapped into memory; None where there is none. ValueError where it is damaged."""
    with _index_file(path):
        return np.load(path, mmap_mode="r") if path.exists() else None


@contextlib.contextmanager
def _index_file(path: pathlib.Path) -> Iterator[None]:
    """Whatever a damaged file of an index leads to leaves as a ValueError that says what to do."""
    try:
        yield
    except Exception as error:
        problem = legible(str(error))
        raise ValueError(f"{path} is damaged ({problem}): delete {path.parent} to measure again") from error


if __name__ == "__main__":
    main()
