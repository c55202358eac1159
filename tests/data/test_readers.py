"""Records of every kind of data set, by random access."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.host_data import write_array_record, write_tfds
from unitoken_jax.config import SourceConfig
from unitoken_jax.data import readers
from unitoken_jax.data.readers import count_records, open_records, scan_json
from unitoken_jax.sequence.conversation import ConversationError, parse_conversation
from unitoken_jax.sequence.image import image_size

VALUES = [{"a": 1, "b": "é 🙂 \n x"}, {"conversations": []}, {"c": [1, {"d": ']},"'}]}, {}]


def read_all(path, **config):
    found = open_records(SourceConfig(str(path), **config), scan_json(str(path)))
    found = pickle.loads(pickle.dumps(found))
    return [found.read(i) for i in range(len(found))], [found.where(i) for i in range(len(found))]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_lines_and_arrays(tmp_path, monkeypatch, bom, block):
    monkeypatch.setattr(readers, "_BLOCK", block)
    lines, array, one = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "one.json"
    texts = [json.dumps(value, ensure_ascii=False) for value in VALUES]
    lines.write_text(bom + "\n".join([texts[0], "", " \t", *texts[1:]]), encoding="utf-8")
    assert read_all(lines) == (VALUES, [f"{lines}:{line}" for line in (1, 4, 5, 6)])
    array.write_text(bom + " [\n " + "\n, ".join(texts) + "\n]\n", encoding="utf-8")
    assert read_all(array) == (VALUES, [f"{array}:{line}" for line in (2, 3, 4, 5)])
    one.write_text(bom + json.dumps(VALUES[0], indent=1), encoding="utf-8")
    assert read_all(one) == ([VALUES[0]], [f"{one}:1"])
    (tmp_path / "empty.json").write_text("[ ]")
    assert read_all(tmp_path / "empty.json") == ([], [])
    (tmp_path / "wrong.json").write_text("\n".join(texts))
    assert read_all(tmp_path / "wrong.json")[0] == VALUES


@settings(max_examples=30, deadline=None)
@given(st.lists(st.recursive(st.text() | st.integers(), st.lists, max_leaves=5), max_size=6), st.data())
def test_any_array_in_any_block_size(tmp_path_factory, values, data):
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = "[" + ",".join(json.dumps({"v": v}, ensure_ascii=data.draw(st.booleans())) for v in values) + "]"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK", data.draw(st.integers(1, 40)))
        assert read_all(path)[0] == [{"v": v} for v in values]


@pytest.mark.parametrize(
    ("text", "good", "message"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 2}', [0, 2], ":2: not valid JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', [0], ":2: not UTF-8"),
        (b'[{"a": 1},\n{"a": "\xff"},\n{"a": 2}]', [0, 2], ":2: not UTF-8"),
        (b'[{"a": 1},\n{"a": ]', [0], ":2: not valid JSON"),
        (b'[{"a": 1}\n{"a": 2}]', [0], ":2: not valid JSON"),
        (b'[{"a": 1}]\nmore', [0], ":2: not valid JSON"),
        (b'[{"a": 1},\n', [0], ":2: not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", [], ":1: not valid JSON"),
    ],
)
def test_a_broken_record_says_its_line_and_the_others_can_be_read(tmp_path, text, good, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    found = open_records(SourceConfig(str(path)), scan_json(str(path)))
    for i in range(len(found)):
        if i in good:
            assert found.read(i)["a"] in (1, 2)
        else:
            with pytest.raises(ConversationError, match=message):
                found.read(i)
    assert len(found) > len(good)


def test_a_huge_record_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n{"a": 2}')
    found = open_records(SourceConfig(str(path)), scan_json(str(path)))
    assert [found.read(0), found.read(2)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ConversationError, match=r"a\.jsonl:2: a record of 2009 bytes, more than 1000: split"):
        found.read(1)


def test_array_records(tmp_path):
    for number, values in enumerate((VALUES[:3], VALUES[3:])):
        path = tmp_path / f"x.array_record-{number:05}-of-00002"
        write_array_record(path, [json.dumps(value).encode() for value in values])
    for path in (tmp_path, tmp_path / "x.array_record*"):
        found = pickle.loads(pickle.dumps(open_records(SourceConfig(str(path), kind="array_record"))))
        assert [found.read(i) for i in range(len(found))] == VALUES
        assert found.where(3) == f"{tmp_path}/x.array_record-00001-of-00002:record 0"
    whole = (tmp_path / "x.array_record-00000-of-00002").read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.array_record-00000-of-00002").write_bytes(whole[:size])
        with pytest.raises(ConversationError, match=r"00000-of-00002 holds no complete record"):
            open_records(SourceConfig(str(tmp_path / "*array_record*")))
    with pytest.raises(FileNotFoundError):
        count_records(str(tmp_path / "none"))


def test_tfds(tmp_path):
    folder = write_tfds(tmp_path, 5)
    config = SourceConfig(str(folder), split="train[1:]", mapping="tests.helpers.host_data:tfds_conversation")
    found = pickle.loads(pickle.dumps(open_records(config)))
    assert len(found) == 4
    conversation = parse_conversation(found.read(2), found.where(2), None)
    image, question = conversation.turns[0].parts
    assert question == "q3"
    assert image_size(image.path) == (16, 24)
    assert image.name == f"{folder}[train[1:]]:example 2, image 1"
    with pytest.raises(ConversationError, match=r"example 0: the mapping of fields .* failed \(KeyError"):
        open_records(SourceConfig(str(folder))).read(0)
    for path, split in ((folder, "test"), ("no_such_set:1.0.0", "train")):
        with pytest.raises(ConversationError, match=f"{path}: TFDS cannot open split '{split}' of it"):
            open_records(SourceConfig(str(path), kind="tfds", split=split))
    with pytest.raises(ValueError, match="has no function 'nothing'"):
        open_records(SourceConfig(str(folder), mapping="tests.helpers.host_data:nothing"))
    digest = readers.records_digest(config)
    assert digest == readers.records_digest(config)
    assert digest != readers.records_digest(SourceConfig(str(folder), mapping=config.mapping))


def test_no_file():
    with pytest.raises(FileNotFoundError, match=r"no conversation file at nowhere\.jsonl"):
        scan_json("nowhere.jsonl")


def test_a_million_lines_take_a_second(tmp_path):
    import time

    path = tmp_path / "a.jsonl"
    path.write_bytes((b'{"conversations": "' + b"x" * 80 + b'"}\n') * 300_000)
    start = time.process_time()
    table = scan_json(str(path))
    assert time.process_time() - start < 1
    assert len(table) == 300_000
    np.testing.assert_array_equal(table[1000], [102 * 1000, 102 * 1001 - 1, 1001])
