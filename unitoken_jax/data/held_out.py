"""A share of a source's rows that is set apart from training, chosen by what each row says.

A row's hash decides on its side. So it keeps that side when rows are added, removed or moved, when the file
is written in another format, and when ids beside the conversation change; rows that say the same are on one
side; and a larger share holds all that a smaller one does. The hashes are made when a share is first asked
for, in one pass over the records, and kept in the index's folder:

    content.npy   uint64[N]   hash of each record's conversation; 0 for one that cannot be read
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from unitoken_jax.config import SourceConfig
from unitoken_jax.data import shuffle
from unitoken_jax.data.image_folder import ImageFolderRecords
from unitoken_jax.data.index import Index
from unitoken_jax.data.index_build import read_table
from unitoken_jax.sequence.errors import ConversationError, RowError, row_errors
from unitoken_jax.storage.atomic import save_array

HASHES = "content.npy"
_HELD_OUT = 0x0E  # salt that keeps this choice apart from other random numbers


def part_rows(index: Index, config: SourceConfig) -> np.ndarray:
    """bool[N]: the rows of `index` that belong to `config.part`, bad ones among them.

    Raises ConversationError where either side would have no row that can be used: of very few rows, a small
    share may set none apart. The message names the counts, and the shares that leave rows on both sides.
    """
    if config.part == "all" or not config.held_out:
        return np.ones(len(index), bool)
    draws = shuffle.uniform(content_hashes(index), _HELD_OUT)
    held_out = draws < config.held_out
    good = np.array(index.lengths[:, 0] > 0)
    if len(np.unique(held_out[good])) < 2:
        raise ConversationError(_one_sided(config, draws[good]))
    return held_out if config.part == "held_out" else ~held_out


def _one_sided(config: SourceConfig, draws: np.ndarray) -> str:
    """Why a share leaves one side without rows, whose `draws` float64[n] it is compared with."""
    held_out = int(np.count_nonzero(draws < config.held_out))
    lowest, highest = (draws.min(), draws.max()) if len(draws) else (0.0, 0.0)
    low, high = math.floor(lowest * 1e4 + 1) / 1e4, math.floor(highest * 1e4) / 1e4
    advice = (
        f"a share from {low} to {high} leaves rows on both sides"
        if low <= high
        else "its rows are too few or too alike for a share"
    )
    return (
        f"{config.path}: held_out {config.held_out} sets apart {held_out} of its {len(draws)} usable rows; "
        f"expected at least one on either side: {advice}, or name another file for validation"
    )


def content_hashes(index: Index) -> np.ndarray:
    """uint64[N]: the hash of each record's conversation, made and kept in the index's folder at first."""
    path = index.folder / HASHES
    if (hashes := read_table(path)) is None:
        rows = tqdm(range(len(index)), unit="row", desc="hashing", disable=None, leave=False)
        hashes = np.fromiter((_content_hash(index, row) for row in rows), np.uint64, len(index))
        save_array(path, hashes)
    return hashes


def _content_hash(index: Index, row: int) -> int:
    """The hash of record `row`; 0 where it cannot be read, which is a bad row."""
    try:
        with row_errors(index.records.location(row)):
            records = index.records
            if isinstance(records, ImageFolderRecords):  # what describes an image is where what draws it is
                return _hash(dataclasses.astuple(records.image(row)))
            return content_hash(records.read(row))
    except RowError:
        return 0


def content_hash(record: dict) -> int:
    """64 bits of what a record says: its turns, and its images' names (or their bytes, where it has them)."""
    return _hash([record["conversations"], record.get("image")])


def _hash(said: Sequence) -> int:
    text = json.dumps(said, sort_keys=True, default=_plain)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _plain(value: Any) -> str:
    """What stands in JSON for an encoded image, or for whatever else a mapping may have put into a record."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
