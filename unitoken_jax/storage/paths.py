"""Files wherever they lie: a local disk, or any file system etils knows (`gs://bucket/...`).

Random access by byte range, names from patterns, fingerprints, and writing that leaves the whole file or
none.
"""

import dataclasses
import errno
import glob
import hashlib
import io
import os
import pathlib
import threading
import uuid
from collections.abc import Callable

import numpy as np

ENDS = 1 << 16  # bytes at both ends of a large file that its fingerprint covers


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL such as gs://bucket/file."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike):
    """A pathlib.Path, or etils' epath.Path for a URL; both open, list and stat alike. Raises ValueError for
    a URL of an unknown kind."""
    if not is_remote(path):
        return pathlib.Path(path)
    import fsspec.config
    from etils import epath

    # gcsfs would answer from what it has listed before, blind to what other hosts and tensorstore write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    try:
        return epath.Path(path)
    except KeyError:  # etils names the scheme, no more
        raise ValueError(f"{path} is no URL that can be opened; expected gs://bucket/...") from None


def absolute(path: str | os.PathLike):
    """As `as_path`, from the root on."""
    return as_path(path) if is_remote(path) else pathlib.Path(path).absolute()  # etils' would prefix a URL


def expand(pattern: str | os.PathLike, suffix: str = "") -> list:
    """The files `pattern` names, sorted: one file, a pattern with `*`, or a folder's files with `suffix` in
    their names. Raises FileNotFoundError where there are none."""
    text, path = os.fspath(pattern), as_path(pattern)
    if any(sign in text for sign in "*?["):
        if is_remote(text):
            folder, _, name = text.rpartition("/")
            found = [as_path(each) for each in as_path(folder).glob(name)]
        else:
            found = [pathlib.Path(each) for each in glob.glob(text)]
        # An index beside the data may have a name that the pattern fits too.
        found = [each for each in found if each.is_file()]
    elif path.is_dir():
        found = [each for each in path.iterdir() if suffix in each.name and each.is_file()]
    else:
        found = [path] if path.exists() else []
    if not found:
        raise FileNotFoundError(f"no files at {text}: expected a file, a folder of *{suffix}*, or a pattern")
    return sorted(found, key=os.fspath)


class RandomFile:
    """A file read by byte range, opened at the first read; picklable, for data workers."""

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path)
        self._file, self._lock = None, threading.Lock()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])

    def __del__(self):
        if self._file is not None:
            self._file.close()

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer at the end of the file."""
        if self._file is None:
            with self._lock:
                self._file = self._file or self.path.open("rb")
        if isinstance(self.path, pathlib.Path) and hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSlice:
    """Part of a file that is a file itself, such as an image in a tar shard; `name` is for messages."""

    name: str
    file: RandomFile
    start: int
    size: int

    def __str__(self) -> str:
        return self.name

    def is_file(self) -> bool:
        return True

    def open(self, mode: str = "rb") -> io.BufferedReader:
        return io.BufferedReader(_Raw(self), 1 << 14)  # an image's header is rarely longer


class _Raw(io.RawIOBase):
    """The bytes of a Slice, read as they are asked for."""

    def __init__(self, part: FileSlice):
        self._part, self._place = part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._part.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._part.size - self._place))
        data = self._part.file.read(self._part.start + self._place, count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


@dataclasses.dataclass(frozen=True, eq=False)
class InMemoryFile:
    """A file that a record brings along, such as an encoded image of a TFDS example."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def is_file(self) -> bool:
        return True

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.data)


def size_of(path) -> int:
    """Bytes of the file `path` (of `as_path`)."""
    stat = path.stat()
    return stat.st_size if hasattr(stat, "st_size") else stat.length


def file_digest(path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def ends_digest(paths) -> str:
    """A fingerprint of files too large to read through: names, sizes, and the bytes at both ends."""
    digest = hashlib.sha256()
    for path in paths:
        size = size_of(path)
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()


def atomic_write(path: pathlib.Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Calls `write` with a new file that becomes `path` when complete, and not at all if anything fails.

    Raises OSError naming `path` where the disk is full; what was there before stays.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Writes a file of UTF-8 at `path` (of `as_path`), whole or not at all."""
    if is_remote(path):
        path.write_bytes(text.encode())  # an object appears when it is complete
    else:
        atomic_write(path, lambda out: out.write(text.encode()))


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""
    atomic_write(path, lambda out: np.save(Checked(out), array))


class Checked:
    """A file for numpy to write to: given a real one it writes past Python, and a full disk goes unseen."""

    def __init__(self, file: io.BufferedWriter):
        self.write = file.write


def explain_os_error(error: OSError, path: os.PathLike) -> OSError:
    """`error`, or one that says more where the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return OSError(
        error.errno,
        f"no space left while writing {path}: what was complete before is intact; make room, then "
        "repeat the command to go on",
    )
