"""Where a data set's images lie: a folder, or tar shards with a table of what is in them.

Both give `store / name`, something with `open("rb")` and `is_file()`, and never read an image for it.
"""

import hashlib
import logging
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable

import numpy as np

from unitoken_jax.sequence.image import ImageError
from unitoken_jax.storage.paths import FileSlice, RandomFile, as_path, expand, size_of

# Called with the error of what is left out: a shard, a row, an image.
OnError = Callable[[Exception], None]

log = logging.getLogger(__name__)

_BLOCK = 512  # a tar file's unit; two blocks of zeros end it


def encode_name(name: str) -> bytes:
    """An image's name in UTF-8, or as near to it as a file's name of any other bytes comes."""
    return name.encode(errors="surrogatepass")


def name_hash(name: str) -> int:
    """64 bits of an image's name: two of twenty million collide with a chance of 1e-5."""
    return int.from_bytes(hashlib.blake2b(encode_name(name), digest_size=8).digest(), "little")


def name_hashes(names: Iterable[str]) -> np.ndarray:
    """uint64[N]: `name_hash` of each."""
    return np.fromiter((name_hash(name) for name in names), np.uint64)


def is_tar(images: str | os.PathLike) -> bool:
    """Whether `images` names tar shards (one, or a pattern), not a folder, whatever that is called."""
    return os.fspath(images).endswith(".tar") and not os.path.isdir(images)


class Tars:
    """Images in tar shards, by member name: `tars / name` is a FileSlice, or Missing."""

    def __init__(self, shards: list, table: np.ndarray):
        """`table` int64[N, 4]: name hash (sorted as uint64), shard, first byte, bytes; see `scan_tars`."""
        self._set_up(shards, table)

    def _set_up(self, shards: list, table: np.ndarray) -> None:
        self._shards = [RandomFile(shard) for shard in shards]
        self._table = table
        self._hashes = np.ascontiguousarray(table[:, 0]).view(np.uint64)

    def __getstate__(self) -> dict:
        return {"shards": [shard.path for shard in self._shards], "table": self._table}

    def __setstate__(self, state: dict) -> None:
        self._set_up(state["shards"], state["table"])

    def __truediv__(self, name: str) -> "FileSlice | Missing":
        wanted_hash = np.uint64(name_hash(_member_name(name)))
        i = int(np.searchsorted(self._hashes, wanted_hash))
        if i == len(self._hashes) or self._hashes[i] != wanted_hash:
            return Missing(f"{name} (in {len(self._shards)} tar shards, {self._shards[0].path} ...)")
        _, shard, start, size = self._table[i].tolist()
        return FileSlice(f"{self._shards[shard].path}:{name}", self._shards[shard], start, size)


class Missing:
    """An image that is not there; opening it says so."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return self.name

    def is_file(self) -> bool:
        return False


def open_images(images: str, data: str, table: np.ndarray | None = None) -> "Tars | pathlib.Path":
    """The store `images` names: tar shards, a folder, or (empty) the folder of the file `data`."""
    if is_tar(images):
        if table is None:
            table = scan_tars(images)
        return Tars(expand(images), table)
    return as_path(images) if images else as_path(data).parent


def scan_tars(images: str, on_error: OnError | None = None) -> np.ndarray:
    """int64[N, 4]: what `Tars` needs, from the shards' headers alone.

    A damaged or truncated shard raises ImageError naming it; with `on_error` that gets the error, and the
    whole members before the damage count. A name in two places raises always: which one was meant?
    """
    shards = expand(images)
    rows: list[tuple[int, int, int, int]] = []
    for number, shard in enumerate(shards):
        members, problem = _members(shard)
        rows += [(name_hash(name), number, start, size) for name, start, size in members]
        if problem is not None:
            error = ImageError(f"{shard} {problem}: copy the shard again", "corrupt_image")
            if on_error is None:
                raise error
            on_error(error)
    # As int64 that has the same bits.
    table = np.array([(h - (1 << 64) if h >> 63 else h, *values) for h, *values in rows], np.int64)
    table = table.reshape(-1, 4)
    hashes = table[:, 0].copy().view(np.uint64)
    table, hashes = table[np.argsort(hashes, kind="stable")], np.sort(hashes)
    if (twice := np.flatnonzero(hashes[1:] == hashes[:-1])).size:
        first, second = (shards[table[twice[0] + i, 1]] for i in (0, 1))
        raise ImageError(
            f"an image's name stands twice in the tar shards {first} and {second} ({len(twice)} such "
            "names): give each image its own name",
            "corrupt_image",
        )
    return table


def _member_name(name: str) -> str:
    """ "a.png" of "./a.png": `tar` writes both."""
    return name.removeprefix("./")


def _members(shard: pathlib.Path) -> tuple[list[tuple[str, int, int]], str | None]:
    """((name, first byte, bytes) of each whole file in `shard`, what is wrong with it or None)."""
    members: list[tuple[str, int, int]] = []
    size = size_of(shard)
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # the next member would be looked for before this one
                    return (
                        members,
                        f"is damaged at {member.name} (member {len(members) + 1}): a negative size",
                    )
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK * member.isreg()
                if end > size:
                    return members, f"is truncated within {member.name} (member {len(members) + 1})"
                if member.isreg():
                    members.append((_member_name(member.name), member.offset_data, member.size))
            file.seek(tar.offset)
            end_mark = file.read(_BLOCK)
    except OSError:  # the disk's or the network's, not the shard's
        raise
    except Exception as error:  # tarfile has several of its own, and lets int() and decode() raise theirs
        return members, f"is damaged after {len(members)} members ({error})"
    # tarfile takes a file that stops between two members, or goes on with a damaged one, for a whole one.
    if len(end_mark) < _BLOCK:
        return members, f"is truncated after {len(members)} members: it has no end mark"
    if any(end_mark):
        return members, f"is damaged after {len(members)} members (a bad header)"
    return members, None


def store_files(images: str) -> list[pathlib.Path]:
    """The files a fingerprint of `images` covers: tar shards; a folder's images are not looked at."""
    return expand(images) if is_tar(images) else []
