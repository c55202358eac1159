"""The length index of a data set: what each example takes of a row, and which rows cannot be used and why.

Made once, from text and image headers alone, into `<data>.index/<key>/` and memory-mapped from there, so
that twenty million examples cost no memory. The key covers the data, the tokenizer and the geometry: when one
of them changes, another index is made. Images in a folder are not looked at again: an example that no
longer has the length it had is an error when it is built (sources.py).

    lengths.npy   int32[N, 5]   tokens, crops, images, suffix (ExampleSize), tokens without the
                                prompt; a bad row has 0 tokens
    records.npy   int64[N, 3]   where each record of a JSON file lies (sequence/conversation_file.py), or
                  int64[N, 4]   of an image folder's (image_folder.py)
    images.npy    int64[M, 4]   where each image of tar shards lies (image_store.py)
    bad.jsonl                   one object a bad row: row, where, reason, message
    about.json                  what the key was made of; written last
"""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import uuid

import numpy as np

from unitoken_jax.config import ModelConfig, SourceConfig
from unitoken_jax.data import index_build
from unitoken_jax.data.image_store import OnError, open_images, store_files
from unitoken_jax.data.index_build import BAD, IMAGES, LENGTHS, RECORDS, read_table
from unitoken_jax.data.readers import TEXT_FILES, kind_of, open_records, records_digest, resolve_source
from unitoken_jax.sequence.conversation import Conversation, parse_conversation
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_folder, write_text
from unitoken_jax.storage.paths import as_path, ends_digest, file_digest, is_remote, size_of, user_cache

log = logging.getLogger(__name__)

FORMAT = 3  # of the files, and of what counts as a row; part of the key
SHOWN = 20  # bad rows that are logged one by one
ABOUT, STAMPS = "about.json", "stamps.json"


class Index:
    """A data set with its measured lengths. `lengths` int32[N, 5], see the module."""

    def __init__(self, config: SourceConfig, folder: pathlib.Path, key: str):
        self.config, self.folder, self.key = config, folder, key
        self._open()

    def _open(self) -> None:
        lengths, records, images = (read_table(self.folder / name) for name in (LENGTHS, RECORDS, IMAGES))
        if lengths is None:
            raise FileNotFoundError(f"{self.folder} has no {LENGTHS}: delete it to measure again")
        self.lengths = lengths
        self.records = open_records(self.config, records)
        self.images = open_images(self.config.images, self.config.path, images)

    def __getstate__(self) -> dict:
        return {"config": self.config, "folder": self.folder, "key": self.key}

    def __setstate__(self, state: dict) -> None:
        type(self).__init__(self, **state)

    def __len__(self) -> int:
        return len(self.lengths)

    def conversation(self, i: int) -> Conversation:
        """Example `i`. Raises ConversationError beginning with where it stands."""
        return parse_conversation(self.records.read(i), self.records.location(i), self.images)

    def bad(self) -> list[index_build.InvalidRow]:
        """Every row that cannot be used, in order."""
        return index_build.read_bad(self.folder / BAD)

    def data_digest(self) -> list[str]:
        """What the function `data_digest` says of the data."""
        about = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return [about["data"], about["shards"]]

    @property
    def report(self) -> pathlib.Path:
        """The file that lists the bad rows."""
        return self.folder / BAD

    def fingerprint(self) -> str:
        """Changes when the examples or their order would."""
        rows = np.flatnonzero(self.lengths[:, 0] == 0).astype(np.int64)
        return hashlib.sha256(self.key.encode() + rows.tobytes()).hexdigest()


def open_index(
    config: SourceConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    folder: str = "",
    on_error: OnError | None = None,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Index:
    """The index of a source, made now where there is none.

    Args:
      folder: where indexes are kept; empty: beside the data, or, where that cannot be written, in the user's
        cache folder.
      on_error: called with the error of each bad row (of the first ones; all are in `Index.report`). None
        raises the first, counting the others; bad rows of an earlier index are then looked at again first.
      workers: processes that measure; None: one a core if there is much to do.
      share: (index, count) of this process among those that build the index together in a shared folder.
    """
    config = resolve_source(config)
    base = index_folder(config, folder)
    about = describe(config, model, tokenizer, base)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = base / key[:16]
    spec = index_build.IndexBuildSpec(config, model, tokenizer, base / f"{key[:16]}.building", key)
    if not (path / ABOUT).exists():
        try:
            index_build.measure_all(spec, workers, share, on_error)
            _finish(spec, path, about)
        except Exception:  # whatever comes of a folder that vanishes under our hands
            if not (path / ABOUT).exists():  # else another process was faster, and has cleaned up behind us
                raise
    bad = index_build.read_bad(path / BAD)
    if on_error is None and bad:
        bad = index_build.measure_again(spec, path)
    report_bad(bad, path / BAD, on_error)
    return Index(config, path, key)


def report_bad(bad: list[index_build.InvalidRow], report: pathlib.Path, on_error: OnError | None) -> None:
    """Raises the first of `bad` with a count of the others, or hands them to `on_error`, the first ones."""
    if not bad:
        return
    reasons = collections.Counter(row.reason for row in bad)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if on_error is None:
        more = f"\n{len(bad)} bad rows in all ({counts}): {report} lists them" if len(bad) > 1 else ""
        hint = '\n(data.on_error="skip" leaves bad rows out)'
        raise bad[0].error(more + hint)
    for row in bad[:SHOWN]:
        on_error(row.error())
    if len(bad) > SHOWN:
        log.warning("left out: %d bad rows (%s); %s lists them all", len(bad), counts, report)


def index_folder(config: SourceConfig, folder: str = "") -> pathlib.Path:
    """Where the indexes of a source are kept. Raises ValueError where `folder` is a URL."""
    if is_remote(folder):
        raise ValueError(
            f"data.index is {folder}, a URL, but an index is mapped into memory: expected a local folder, or "
            "nothing for the user's cache folder"
        )
    path = config.path
    by_name = not is_remote(path) and kind_of(config) == "tfds" and not os.path.isdir(path)
    name = pathlib.PurePosixPath(path.rstrip("/")).name.replace("*", "_").replace("?", "_") + ".index"
    beside = None if by_name or is_remote(path) else pathlib.Path(path).absolute().parent
    if not folder and beside is not None and os.access(beside, os.W_OK):
        return beside / name
    # Elsewhere two data sets may have the same name.
    whole = path if by_name or is_remote(path) else os.path.abspath(path)
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    if folder:
        return as_path(folder) / f"{mark}-{name}"
    if (cache := user_cache()) is None:
        raise ValueError(
            f"{path}: no index can be written beside it, and no home directory is known: set data.index to a "
            "folder"
        )
    return cache / "unitoken" / "index" / f"{mark}-{name}"


def describe(config: SourceConfig, model: ModelConfig, tokenizer: Tokenizer, base: pathlib.Path) -> dict:
    """What an index depends on, for its key and for people."""
    data, shards = data_digest(config, base)
    sequence = dataclasses.asdict(model.sequence)
    geometry = ("encoding", "resolution", "grids", "image_size", "size_unit", "features_in_answers")
    return {
        "format": FORMAT,
        "data": data,
        "kind": kind_of(config),
        "images": config.images,
        "shards": shards,
        "tokenizer": tokenizer.fingerprint(),
        "siglip": [model.siglip.image_size, model.siglip.patch_size],
        "vq_stride": model.vq.stride,
        "sequence": {name: sequence[name] for name in geometry},
    }


def data_digest(config: SourceConfig, base: pathlib.Path) -> list[str]:
    """Fingerprints of the records and of tar shards ("" without them); `base` remembers the first."""
    tars = store_files(config.images)
    data = _stamped(config.path, base) if kind_of(config) in TEXT_FILES else records_digest(config)
    if kind_of(config) == "image_folder":
        data += f" {config.captions}"
    return [data, ends_digest(tars) if tars else ""]


def _stamped(path: str, base: pathlib.Path) -> str:
    """SHA-256 of a file, read again only when its size or time has changed."""
    file = as_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no conversation file at {path}")
    stat = file.stat()
    now = [size_of(file), getattr(stat, "st_mtime_ns", None) or getattr(stat, "mtime", 0)]
    stamp = base / STAMPS
    try:
        seen = json.loads(stamp.read_text(encoding="utf-8"))
        if seen["stat"] == now:
            return seen["sha256"]
    except Exception:
        pass  # none yet, or half a file from elsewhere: hash again
    digest = file_digest(file)
    base.mkdir(parents=True, exist_ok=True)
    write_text(stamp, json.dumps({"stat": now, "sha256": digest}))
    return digest


def _finish(spec: index_build.IndexBuildSpec, path: pathlib.Path, about: dict) -> None:
    """Joins the measured chunks into the index's folder, which appears whole or not at all."""
    # Several processes may get here at the same time.
    staging = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    with atomic_folder(path, staging=staging) as folder:
        index_build.join(spec, folder)
        write_text(folder / ABOUT, json.dumps(about, indent=1))
    shutil.rmtree(spec.folder, ignore_errors=True)
