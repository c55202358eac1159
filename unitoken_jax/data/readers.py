"""The records of a data set, whatever holds them: JSON or JSONL, ArrayRecord, TFDS, or an image folder.

Every kind has a length, random access with `records.read(i)` to a raw conversation (a dict in the public
format of sequence/conversation.py), and `records.location(i)`, which says in messages where that stands.
Nothing holds conversations in memory: a text file is read through a table of byte positions.
"""

import bisect
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import runpy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from unitoken_jax.config import SourceConfig
from unitoken_jax.data.image_folder import (
    ImageFolderRecords,
    looks_like_metadata,
    metadata_file,
    scan_image_folder,
)
from unitoken_jax.sequence.conversation_file import JsonRecords, decode_json, scan_json
from unitoken_jax.sequence.errors import ConversationError, row_errors
from unitoken_jax.storage.paths import as_path, ends_digest, expand, expand_home

TEXT_FILES = ("json", "image_folder")  # kinds whose records are parts of one text file


def resolve_source(config: SourceConfig) -> SourceConfig:
    """`config` with `~` expanded in its paths, its kind, and an image folder's file as its path.

    Raises FileNotFoundError for an image folder that lacks this file, and ValueError for one with several.
    """
    config = dataclasses.replace(
        config,
        path=expand_home(config.path),
        images=expand_home(config.images),
        codes=expand_home(config.codes),
        mapping=expand_home(config.mapping),
    )
    config = dataclasses.replace(config, kind=kind_of(config))
    if config.kind != "image_folder":
        return config
    return dataclasses.replace(config, path=metadata_file(config.path, config.split))


Kind = Literal["json", "array_record", "tfds", "image_folder"]


def kind_of(config: SourceConfig) -> Kind:
    """The kind of a source: as `config.kind` says, or as its path and what is there look."""
    if config.kind != "auto":
        return config.kind
    path = config.path
    if path.endswith((".json", ".jsonl")):
        return "image_folder" if looks_like_metadata(path) else "json"
    if path.endswith(".csv"):
        return "image_folder"
    if "array_record" in path:
        return "array_record"
    if config.mapping or os.path.exists(os.path.join(path, "dataset_info.json")):
        return "tfds"
    return "image_folder" if as_path(path).is_dir() else "json"


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
        """(file, number in it) of record `i`."""
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def location(self, i: int) -> str:
        """ "file:record n" of record `i`."""
        shard, record = self.locate(i)
        return f"{self._paths[shard]}:record {record}"

    def read(self, i: int) -> Any:
        """The record as JSON says it. Raises ConversationError where it is damaged or no JSON."""
        shard, record = self.locate(i)
        with row_errors(self.location(i)):
            if self._readers[shard] is None:
                self._readers[shard] = array_record_module().ArrayRecordReader(self._paths[shard])
            (data,) = self._readers[shard].read([record])
            return decode_json(data)


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

    def location(self, i: int) -> str:
        """ "data set[split]:example i"."""
        return f"{self.path}[{self.split}]:example {i}"

    def read(self, i: int) -> Any:
        """Example `i` as the mapping makes it. Raises ConversationError where that fails."""
        with row_errors(self.location(i)):
            example = self._examples[i]
            try:
                return self._map(example)
            except (Exception, SystemExit) as error:  # the mapping is the user's own code
                raise ConversationError(
                    f"the mapping {self.mapping or 'of fields conversations and image'} failed "
                    f"({type(error).__name__}: {error})"
                ) from error


Records = JsonRecords | ArrayRecords | TfdsRecords | ImageFolderRecords


def scan_records(config: SourceConfig) -> np.ndarray:
    """int64[N, columns]: where each record of a text file lies, as `open_records` needs it."""
    return scan_image_folder(config) if kind_of(config) == "image_folder" else scan_json(config.path)


def open_records(config: SourceConfig, table: np.ndarray | None = None) -> Records:
    """The records of a source, as by `resolve_source`; `table` is a text file's (`scan_records`)."""
    kind = kind_of(config)
    if kind == "tfds":
        return TfdsRecords(config.path, config.split, config.mapping)
    if kind == "array_record":
        return ArrayRecords(expand(config.path, "array_record"))
    table = scan_records(config) if table is None else table
    return (ImageFolderRecords if kind == "image_folder" else JsonRecords)(config.path, table)


def records_digest(config: SourceConfig) -> str:
    """A fingerprint of records that are not in a text file (those are hashed whole, see index.py)."""
    if kind_of(config) == "array_record":
        return ends_digest(expand(config.path, "array_record"))
    records = TfdsRecords(config.path, config.split, config.mapping)
    info = records.info
    shards = {name: split.shard_lengths for name, split in info.splits.items()}
    source = inspect.getsource(inspect.getmodule(records._map) or records._map) if config.mapping else ""
    about = [info.full_name, shards, config.split, config.mapping, source]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


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
    """The function that `name` says: "package.module:function" or "path/file.py:function"."""
    module, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"mapping {name!r}: expected package.module:function or file.py:function")
    if module.endswith(".py"):
        function = runpy.run_path(module).get(attribute)
    else:
        function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise ValueError(f"mapping {name!r}: {module} has no function {attribute!r}")
    return function


def _image_features(tfds: Any, features: Any) -> list[str]:
    """Names of a data set's features that are images."""
    return [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]


def _as_conversation(example: dict) -> dict:
    """An example with fields `conversations` and perhaps `image` as a record."""
    record = {"conversations": json.loads(example["conversations"])}
    images = example.get("image")
    if images is not None:
        record["image"] = [images] if isinstance(images, bytes) else [bytes(image) for image in images]
    return record
