"""Files wherever they lie: a local disk, or any file system etils knows (`gs://bucket/...`).

Paths and patterns, files read by byte range, and fingerprints of files. Writing is in atomic.py.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import io
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A fingerprint of a large file covers this many bytes at each of its ends.
ENDS = 1 << 16
# In the path of a checkpoint: glob's signs, and what tensorstore refuses.
_MISREAD = re.compile(r"[*?\[\\\ud800-\udfff]")


class ReadableFile(Protocol):
    """What a reader of images needs of a file: a path, a FileSlice or an InMemoryFile."""

    def is_file(self) -> bool: ...

    def open(self, mode: str = "rb") -> Any: ...


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL such as gs://bucket/file."""
    return "://" in os.fspath(path)


def expand_home(path: str | os.PathLike) -> str:
    """A local path as a person types it, `~` and `~name` at its beginning made the home directory they mean.

    A file or folder here that is called `~name` is meant before the user of that name.
    Raises ValueError where the home directory is not known: a folder called "~" is never meant.
    """
    text = os.fspath(path)
    user = text.split(os.sep)[0]
    if not user.startswith("~") or (user != "~" and os.path.lexists(user)):
        return text
    expanded = os.path.expanduser(text)
    if not os.path.isabs(expanded):
        raise ValueError(
            f"{text}: the home directory {user} is not known on this machine (is HOME set?): give the path "
            "from the root on"
        )
    return expanded


def user_cache(environ: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """The user's folder for what can be made again: XDG_CACHE_HOME, else ~/.cache; None: no home is known."""
    with contextlib.suppress(ValueError):
        named = expand_home(environ.get("XDG_CACHE_HOME", ""))
        # The XDG Base Directory Specification (0.8) has a relative path ignored.
        return pathlib.Path(named if os.path.isabs(named) else expand_home("~/.cache"))
    return None


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """The path as an object: a pathlib.Path (`~` expanded), or etils' epath.Path for a URL.

    Both open, list and stat alike, so both are declared as pathlib.Path, though etils' is a PurePosixPath
    with the same methods (`isinstance(path, pathlib.Path)` tells them apart). Raises ValueError for a URL of
    an unknown kind, or an unknown home directory.
    """
    if not is_remote(path):
        return pathlib.Path(expand_home(path))
    import fsspec.config
    from etils import epath

    # gcsfs would answer from what it has listed before, blind to what other hosts and tensorstore write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    try:
        url: Any = epath.Path(path)
        return url
    except KeyError:  # etils names the scheme, no more
        raise ValueError(f"{path} is no URL that can be opened; expected gs://bucket/...") from None


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """The path as by `as_path`, from the root on and without "..", which tensorstore takes for an error.

    What "link/.." means depends on where the link points: links before a ".." are followed, others are not.
    """
    path = as_path(path)
    if is_remote(path):  # etils' absolute() would prefix a URL
        return path
    path = path.absolute()
    if ".." not in path.parts:
        return path
    end = len(path.parts) - path.parts[::-1].index("..")
    return pathlib.Path(os.path.realpath(pathlib.Path(*path.parts[:end])), *path.parts[end:])


def literal_path(folder: pathlib.Path) -> pathlib.Path:
    """The absolute `folder`, or a link to it where its own path would be misread.

    Orbax finds the files of a local checkpoint with glob patterns that its folder is part of (0.11 and
    0.12): in "run[1]" it would find none, and leave a checkpoint that nobody can read. Tensorstore takes no
    backslash, and no name that is not UTF-8. The link lasts until the process ends.
    """
    if is_remote(folder) or not _MISREAD.search(os.fspath(folder)):
        return folder
    link = pathlib.Path(_links().name, hashlib.sha256(os.fsencode(folder)).hexdigest()[:16])
    if not link.is_symlink():
        link.symlink_to(folder)
    return link


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="unitoken-links-")


def expand(pattern: str | os.PathLike, suffix: str = "") -> list[pathlib.Path]:
    """The files `pattern` names, sorted: one file, a folder's files with `suffix` in their names, or what a
    pattern with `*`, `?` or `[...]` fits.

    What exists is literal, whatever signs its name has, and so is each folder on the way: only what does not
    exist is a pattern. Raises FileNotFoundError where there are no files.
    """
    path = as_path(pattern)
    if path.is_dir():
        files = [file for file in path.iterdir() if suffix in file.name and file.is_file()]
    elif path.exists():
        files = [path]
    else:
        # An index beside the data, a folder, may have a name that the pattern fits too.
        files = [file for file in _matches(path) if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"no files at {os.fspath(pattern)}: expected a file, a folder of *{suffix}*, or a pattern"
        )
    return sorted(files, key=os.fspath)


def _matches(path: pathlib.Path) -> list[pathlib.Path]:
    """What `path` names when its components are patterns wherever nothing has that very name."""
    if not any(sign in os.fspath(path) for sign in "*?["):
        return [path]
    paths: list[pathlib.Path] = []
    for folder in _matches(path.parent):
        if (literal := folder / path.name).exists():
            paths.append(literal)
        elif folder.is_dir():
            names = fnmatch.filter((file.name for file in folder.iterdir()), path.name)
            # As a shell has it, a hidden file is not meant unless the pattern begins with a full stop.
            paths += [folder / name for name in names if not name.startswith(".") or path.name[0] == "."]
    return paths


class RandomFile:
    """A file read by byte range, opened at the first read; picklable, for data workers."""

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path)
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])  # type: ignore[misc]  # the lock cannot be pickled

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer at the end of the file."""
        file = self._open()
        if isinstance(self.path, pathlib.Path) and hasattr(os, "pread"):
            return os.pread(file.fileno(), size, start)
        with self._lock:
            file.seek(start)
            return file.read(size)

    def _open(self) -> BinaryIO:
        if self._file is None:
            with self._lock:
                self._file = self._file or self.path.open("rb")
        return self._file


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
        return io.BufferedReader(_SliceReader(self), 1 << 14)  # an image's header is rarely longer


class _SliceReader(io.RawIOBase):
    """The bytes of a FileSlice, read as they are asked for."""

    def __init__(self, source: FileSlice):
        self._source, self._offset = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._source.size}[whence]
        self._offset = max(0, start + offset)
        return self._offset

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self._source.size - self._offset))
        data = self._source.file.read(self._source.start + self._offset, count)
        target[: len(data)] = data
        self._offset += len(data)
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


def size_of(path: pathlib.Path) -> int:
    """Bytes of the file `path` (of `as_path`)."""
    stat: Any = path.stat()  # etils calls the size `length`
    return stat.st_size if hasattr(stat, "st_size") else stat.length


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def ends_digest(paths: Iterable[pathlib.Path]) -> str:
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
