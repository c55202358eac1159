"""The folder that a run's logs grow in: the run directory, or a local copy where that is a URL.

Nothing can be added to an object of a bucket, so metrics.jsonl and the like are written to the copy and go up
whole: before each checkpoint, so that no step that it holds lacks its numbers, and at the end, whatever ends
the run. Checkpoints, config.json and the model go to the URL themselves.
"""

import logging
import pathlib
import tempfile

import jax

from unitoken_jax.storage.paths import as_path, is_remote
from unitoken_jax.train.checkpoint import SaveError

log = logging.getLogger(__name__)


class LogFolder:
    """The folder that logs are written to, `path`, and where people find them, `url`.

    Both are `workdir` where that is a path. Where it is a URL, `path` is a local folder that goes at the end.
    Use as a context manager around the run, on every process: each sends what it has written.
    """

    def __init__(self, workdir):
        self.url, self._copy, self._sent = as_path(workdir), None, {}
        if is_remote(workdir):
            self._copy = tempfile.TemporaryDirectory(prefix="unitoken-run-")
        self.path = pathlib.Path(self._copy.name) if self._copy else self.url

    def __enter__(self) -> "LogFolder":
        if self._copy and jax.process_index() == 0:  # it alone goes on with the lines of the processes before
            for file in self.url.glob("*.jsonl"):
                (self.path / file.name).write_bytes(file.read_bytes())
            self._sent = self._files()
        return self

    def send(self) -> None:
        """To a URL, sends every file that has changed since the last call; SaveError where that fails."""
        if self._copy is None:
            return
        for file, state in self._files().items():
            if self._sent.get(file) != state:
                target = self.url / file.relative_to(self.path).as_posix()
                try:
                    target.write_bytes(file.read_bytes())
                except Exception as error:  # whatever a file system raises
                    raise SaveError(f"{target} could not be written: {error}") from error
                self._sent[file] = state

    def _files(self) -> dict[pathlib.Path, tuple[int, int]]:
        """Size in bytes and time of the last change of each file in the local folder."""
        files = [file for file in sorted(self.path.rglob("*")) if file.is_file()]
        return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}

    def __exit__(self, kind, *_) -> None:
        if self._copy is None:
            return
        try:
            self.send()
        except SaveError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what ended the run says more
        finally:
            self._copy.cleanup()
