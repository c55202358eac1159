"""A held-out share: two sides without a common row, on which each row stays whatever is around it."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.host_data import (
    DRAWING,
    QUESTION,
    TEXT,
    data_config,
    write_array_record,
    write_data,
    write_tfds,
)
from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
from unitoken_jax.config import SourceConfig, from_dict
from unitoken_jax.data import held_out
from unitoken_jax.data.held_out import content_hash, part_rows, possible_shares
from unitoken_jax.data.sources import Source
from unitoken_jax.sequence.errors import ConversationError

TOKENIZER = tiny_tokenizer()
KINDS = [QUESTION, DRAWING, TEXT] * 8


class InMemoryIndex:
    """What `part_rows` asks of an index, over texts: each is a record that says it."""

    def __init__(self, texts, folder):
        self.records, self.folder, self._texts = self, folder, texts
        self.lengths = np.ones((len(texts), 5), np.int32)

    def __len__(self):
        return len(self._texts)

    def location(self, i):
        return f"memory:{i}"

    def read(self, i):
        return {"id": i, "conversations": [{"from": "human", "value": self._texts[i]}]}


def held_out_texts(texts, share, part="held_out"):
    """Those of `texts` that are on one side; none where a side would be empty."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = part_rows(
                InMemoryIndex(texts, pathlib.Path(folder)), SourceConfig("x", held_out=share, part=part)
            )
        except ConversationError:
            return None
        return [text for text, chosen in zip(texts, rows) if chosen]


TEXTS = [f"row {i}" for i in range(400)]


@given(st.permutations(TEXTS[:60]), st.lists(st.sampled_from(TEXTS[60:])), st.data())
def test_a_row_keeps_its_side(texts, added, data):
    """Added, removed, repeated or moved rows change nothing for the others."""
    kept = data.draw(st.lists(st.sampled_from(texts), min_size=30))
    everything = set(held_out_texts(TEXTS, 0.25))
    for rows in (texts, kept, [*texts, *added, *texts[:7]]):
        expected = [text for text in rows if text in everything]
        assert (held_out_texts(rows, 0.25) or []) == (expected if len(expected) < len(rows) else [])
        assert (held_out_texts(rows, 0.25, "training") or []) == (
            [text for text in rows if text not in everything] if expected else []
        )


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_a_larger_share_holds_a_smaller_one(one, other):
    smaller, larger = (held_out_texts(TEXTS, share) for share in sorted((one, other)))
    assert set(smaller) <= set(larger)
    assert abs(len(larger) / len(TEXTS) - max(one, other)) < 0.11  # four and a half standard deviations


def test_what_is_hashed():
    turns = [{"from": "human", "value": "é <image>"}, {"from": "gpt", "value": "b"}]
    row = {"conversations": turns, "image": "x.png"}
    same = {"id": 7, "image": "x.png", "conversations": [dict(reversed(turn.items())) for turn in turns]}
    assert content_hash(row) == content_hash(json.loads(json.dumps(same, indent=3)))
    others = [row | {"image": "y.png"}, row | {"conversations": turns[:1]}, row | {"image": b"x"}]
    assert len({content_hash(other) for other in [row, *others, row | {"image": b"y"}]}) == 5


def sources_of(config, **changes):
    """(training, held-out) sources over the same data."""
    data = data_config(**changes)
    return [
        Source(
            from_dict(SourceConfig, config | {"held_out": 0.3, "part": part}), 0, data, CONFIG, TOKENIZER, 1
        )
        for part in ("training", "held_out")
    ]


def texts_of(source):
    """What each example of a source says, with its images' names, in the order of the file."""
    conversations = [source.conversation(i) for i in range(len(source))]
    return [[getattr(part, "name", part) for turn in c.turns for part in turn.parts] for c in conversations]


def as_list(data):
    path = data.with_suffix(".json")
    path.write_text(json.dumps([json.loads(line) for line in data.read_text().splitlines()], indent=2))
    return path


def as_array_record(data):
    path = data.with_suffix(".array_record")
    write_array_record(path, data.read_bytes().splitlines())
    return path


def test_every_file_format_has_the_same_sides(tmp_path):
    data = write_data(tmp_path, KINDS)
    sides = [
        [texts_of(source) for source in sources_of({"path": str(path), "images": str(tmp_path)})]
        for path in (data, as_list(data), as_array_record(data))
    ]
    assert sides[0] == sides[1] == sides[2]
    training, held = sides[0]
    assert len(training) + len(held) == len(KINDS)
    assert not [text for text in held if text in training]


@pytest.mark.slow
def test_tfds(tmp_path):
    config = {"path": str(write_tfds(tmp_path, 30)), "mapping": "tests.helpers.host_data:tfds_conversation"}
    training, held = (texts_of(source) for source in sources_of(config))
    assert len(training) + len(held) == 30
    assert not [text for text in held if text in training]


def test_hashes_are_made_once_and_a_run_knows_its_part(tmp_path, monkeypatch):
    config = {"path": str(write_data(tmp_path, KINDS))}
    whole = Source(SourceConfig(config["path"]), 0, data_config(), CONFIG, TOKENIZER, 1)
    assert not (whole.index.folder / held_out.HASHES).exists()  # of rows that nobody sets apart
    training, held = sources_of(config)
    assert len({source.fingerprint() for source in (whole, training, held)}) == 3
    monkeypatch.setattr(held_out, "content_hash", None)  # would fail if called
    assert texts_of(sources_of(config)[0]) == texts_of(training)
    assert held.skipped == training.skipped == 0


def test_bad_rows_are_on_neither_side(tmp_path):
    data = write_data(tmp_path, KINDS)
    lines = data.read_text().splitlines()
    data.write_text("\n".join(["{}", *lines[:5], "not JSON", *lines[5:]]))
    training, held = sources_of({"path": str(data)}, on_error="skip")
    assert len(training) + len(held) == len(KINDS)


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (
            TEXTS[:4],
            0.0001,
            r"x: held_out 0\.0001 sets apart 0 of its 4 usable rows; .*: a share from 0\.\d+ to",
        ),
        (TEXTS[:4], 0.9999, r"sets apart 4 of its 4 usable rows"),
        (["same"] * 9, 0.5, r"of its 9 usable rows; .*: its rows are too few or too alike"),
    ],
)
def test_neither_side_may_be_empty(tmp_path, rows, share, message):
    index = InMemoryIndex(rows, tmp_path)
    for part in ("training", "held_out"):
        with pytest.raises(ConversationError, match=message) as error:
            part_rows(index, SourceConfig("x", held_out=share, part=part))
    shares = possible_shares(index) or ()
    assert " to ".join(map(str, shares)) in str(error.value)
    for named in shares:
        assert 0 < part_rows(index, SourceConfig("x", held_out=named, part="held_out")).sum() < len(rows)


def test_a_part_without_a_share():
    with pytest.raises(ValueError, match=r"data\.sources\[0\]\.held_out is 0, but part is 'held_out'"):
        from_dict(SourceConfig, {"part": "held_out"}, "data.sources[0].")
    assert SourceConfig(part="training").held_out == 0  # nothing is set apart: all rows
