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
    held_out = _draws(index) < config.held_out
    usable = np.array(index.lengths[:, 0] > 0)
    count, rows = int(np.count_nonzero(held_out & usable)), int(np.count_nonzero(usable))
    if not 0 < count < rows:
        shares = possible_shares(index)
        advice = (
            f"a share from {shares[0]} to {shares[1]} leaves rows on both sides"
            if shares
            else "its rows are too few or too alike for any share"
        )
        raise ConversationError(
            f"{config.path}: held_out {config.held_out} sets apart {count} of its {rows} usable rows; "
            f"expected at least one on either side: {advice}, or name another file for validation"
        )
    return held_out if config.part == "held_out" else ~held_out


def possible_shares(index: Index) -> tuple[float, float] | None:
    """The smallest and the largest share, to four places, that leave usable rows on both sides, if any do."""
    draws = _draws(index)[index.lengths[:, 0] > 0]
    if not len(draws):
        return None
    smallest, largest = math.floor(draws.min() * 1e4 + 1) / 1e4, math.floor(draws.max() * 1e4) / 1e4
    return (smallest, largest) if smallest <= largest else None


def _draws(index: Index) -> np.ndarray:
    """float64[N] in [0, 1): a row is held out by shares that are larger."""
    return shuffle.uniform(content_hashes(index), _HELD_OUT)


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
