"""Writing that leaves the whole file or folder, or nothing: what was there before stays until then."""

import contextlib
import errno
import io
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

import numpy as np

from unitoken_jax.storage.paths import is_remote


def atomic_write(path: pathlib.Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Calls `write` with a new file that becomes `path` when complete, and not at all if anything fails.

    Raises OSError naming `path` where the disk is full; what was there before stays.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(staged, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        staged.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of UTF-8 at `path` (of `as_path`), whole or not at all."""
    if is_remote(path):
        path.write_bytes(text.encode())  # an object appears when it is complete
    else:
        atomic_write(path, lambda out: out.write(text.encode()))


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""
    atomic_write(path, lambda out: np.save(CheckedWriter(out), array))


class CheckedWriter:
    """A file for numpy to write to: given a real one it writes past Python, and a full disk goes unseen."""

    def __init__(self, file: io.BufferedWriter):
        self.write = file.write


def staging_path(path: pathlib.Path) -> pathlib.Path:
    """Where a folder grows before it becomes `path`: beside it, with a name that tools pass over."""
    return path.with_name(f".{path.name}.part")


def backup_path(path: pathlib.Path) -> pathlib.Path:
    """Where the older folder `path` is while `replace_folder` puts the new one in its place."""
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def atomic_folder(
    path: pathlib.Path, *, replace: bool = False, staging: pathlib.Path | None = None
) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes the local `path` when the block ends well, and is gone if it fails.

    An empty folder at `path` gives way. A full one does with `replace`, when the new one is complete;
    otherwise OSError is raised, and it stays. What a killed process left in the staging folder goes first.

    `staging` is another folder on the same file system than `staging_path(path)`, for processes that may
    write the same `path` at the same time.
    """
    staged = staging or staging_path(path)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        if replace:
            replace_folder(staged, path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
            os.rename(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def replace_folder(staged: pathlib.Path, path: pathlib.Path) -> None:
    """Makes the complete folder `staged` the local `path`, in place of what is there.

    Killed in between, the older one is whole at `backup_path(path)`.
    """
    backup = backup_path(path)
    shutil.rmtree(backup, ignore_errors=True)
    if path.exists():
        os.rename(path, backup)
    os.rename(staged, path)
    shutil.rmtree(backup, ignore_errors=True)


def explain_os_error(error: OSError, path: os.PathLike) -> OSError:
    """`error`, or one that says more where the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return OSError(
        error.errno,
        f"no space left while writing {path}: what was complete before is intact; make room, then "
        "repeat the command to go on",
    )
