"""Files of conversations in JSON and JSONL: each record by its number, and what is wrong with a file."""

import json
import pathlib
import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitoken_jax.sequence import conversation_file
from unitoken_jax.sequence.conversation import ImageFile
from unitoken_jax.sequence.conversation_file import JsonRecords, read_conversations, scan_json
from unitoken_jax.sequence.errors import ConversationError

VALUES = [{"a": 1, "b": "é 🙂 \n x"}, {"conversations": []}, {"c": [1, {"d": ']},"'}]}, {}]


def read_all(path):
    found = JsonRecords(str(path), scan_json(path))
    found = pickle.loads(pickle.dumps(found))
    return [found.read(i) for i in range(len(found))], [found.location(i) for i in range(len(found))]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_lines_and_arrays(tmp_path, monkeypatch, bom, block):
    monkeypatch.setattr(conversation_file, "_BLOCK", block)
    lines, array, one = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "one.json"
    texts = [json.dumps(value, ensure_ascii=False) for value in VALUES]
    lines.write_text(bom + "\n".join([texts[0], "", " \t", *texts[1:]]), encoding="utf-8")
    assert read_all(lines) == (VALUES, [f"{lines}:{line}" for line in (1, 4, 5, 6)])
    array.write_text(bom + " [\n " + "\n, ".join(texts) + "\n]\n", encoding="utf-8")
    assert read_all(array) == (VALUES, [f"{array}:{line}" for line in (2, 3, 4, 5)])
    one.write_text(bom + json.dumps(VALUES[0], indent=1), encoding="utf-8")
    assert read_all(one) == ([VALUES[0]], [f"{one}:1"])
    array.write_text(bom + "[" + ",".join(texts) + ",\n]", encoding="utf-8")
    assert read_all(array)[0] == VALUES
    (tmp_path / "empty.json").write_text("[ ]")
    assert read_all(tmp_path / "empty.json") == ([], [])
    (tmp_path / "wrong.json").write_text("\n".join(texts))
    assert read_all(tmp_path / "wrong.json")[0] == VALUES


@given(st.lists(st.recursive(st.text() | st.integers(), st.lists, max_leaves=5), max_size=6), st.data())
def test_any_array_in_any_block_size(tmp_path_factory, values, data):
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = "[" + ",".join(json.dumps({"v": v}, ensure_ascii=data.draw(st.booleans())) for v in values) + "]"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation_file, "_BLOCK", data.draw(st.integers(1, 40)))
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
        (b'[{"a": 1}\n{"a": 2}', [0], ":2: not valid JSON .expected , or ] after an element"),
        (b'[{"a": 1},]\n{"a": 2}', [0], ":2: not valid JSON .text after the closing ]"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", [], ":1: not valid JSON"),
    ],
)
def test_a_broken_record_says_its_line_and_the_others_can_be_read(tmp_path, text, good, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    found = JsonRecords(str(path), scan_json(path))
    for i in range(len(found)):
        if i in good:
            assert found.read(i)["a"] in (1, 2)
        else:
            with pytest.raises(ConversationError, match=message):
                found.read(i)
    assert len(found) > len(good)


# How a list may be written: what opens it, stands between elements, closes it, and an element's indent.
LISTS = [
    ("[", ", ", "]", None),
    ("[", ",\n", "]\n", None),
    ("[\n", "\n,", "\n]\n", None),
    ("[\n", ",\n", "]", 1),
]
ELEMENTS = [
    {
        "id": i,
        "conversations": [
            {"from": "human", "value": f'"{i}" {{"a": [1]}} }} ]\n {{'},
            {"from": "gpt", "value": "\\"},
        ],
    }
    for i in range(5)
]


@given(
    st.sampled_from(LISTS),
    st.integers(0, 4),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["drop", "insert", "replace", "cut"]),
    st.sampled_from('"{}[],:\\\nx'),
    st.integers(1, 400),
)
def test_damage_to_one_element_costs_no_other(tmp_path_factory, written, number, at, how, sign, block):
    start, comma, end, indent = written
    texts = [json.dumps(element, indent=indent) for element in ELEMENTS]
    whole = texts[number]
    at = int(at * len(whole))
    tail = {
        "drop": whole[at + 1 :],
        "insert": sign + whole[at:],
        "replace": sign + whole[at + 1 :],
        "cut": "",
    }
    texts[number] = whole[:at] + tail[how]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(start + comma.join(texts) + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation_file, "_BLOCK", block)
        records = JsonRecords(str(path), scan_json(path))
    good = []
    for i in range(len(records)):
        try:
            record = records.read(i)
        except ConversationError as error:
            line = int(str(error).removeprefix(f"{path}:").split(":")[0])
            before = start + comma.join(texts[:number])
            assert line >= before.count("\n") + 1
            continue
        good += [record] if record in ELEMENTS else []
    assert [record for record in good if record != ELEMENTS[number]] == [
        element for element in ELEMENTS if element != ELEMENTS[number]
    ]


def test_a_list_says_how_much_of_it_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    texts = [json.dumps(element) for element in ELEMENTS]
    broken = texts[2].replace('"gpt"', '"gpt""')
    path.write_text("[" + ",\n".join([*texts[:2], broken, *texts[3:]]) + "\n")
    left_out = []
    found = read_conversations(path, on_error=left_out.append)
    assert [conversation.source for conversation in found] == [f"{path}:{line}" for line in (1, 2, 4, 5)]
    assert re.search(rf"a\.json:3: not valid JSON .* in {len(broken) + 2} bytes", str(left_out[0]))
    assert "expected , or ] after an element): 0 bytes, up to" in str(left_out[1])


def test_a_list_as_the_first_row_of_a_jsonl_file_is_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["[1]", *map(json.dumps, ELEMENTS)]))
    assert read_all(path)[0] == [[1], *ELEMENTS]


def test_a_huge_record_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation_file, "MAX_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n{"a": 2}')
    found = JsonRecords(str(path), scan_json(path))
    assert [found.read(0), found.read(2)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ConversationError, match=r"a\.jsonl:2: a record of 2009 bytes, more than 1000: split"):
        found.read(1)


def test_no_file():
    with pytest.raises(FileNotFoundError, match=r"no conversation file at nowhere\.jsonl"):
        scan_json("nowhere.jsonl")


def test_a_million_lines_take_a_second(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes((b'{"conversations": "' + b"x" * 80 + b'"}\n') * 300_000)
    start = time.process_time()
    table = scan_json(str(path))
    assert time.process_time() - start < 1
    assert len(table) == 300_000
    np.testing.assert_array_equal(table[1000], [102 * 1000, 102 * 1001 - 1, 1001])


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


BAD = [
    ({"conversations": turns("<image>", "a")}, "1 <|image|> in the turns but 0 images"),
    ({"conversations": turns("q", "a"), "image": ["a", "b"]}, "0 <|image|> in the turns but 2 images"),
    ({"conversations": turns("q", "")}, "empty answer"),
    ({"conversations": turns("q", " \n")}, "empty answer"),
    ({"conversations": turns("", "a")}, "empty question"),
    ({"conversations": turns("q")}, "ends with a question"),
    ({"conversations": []}, '"conversations" is empty'),
    ({"conversations": turns("q", "a")[::-1]}, "turn 1 is from 'gpt', expected 'human' or 'user'"),
    ({"conversations": [{"from": "system", "value": "x"}]}, "turn 1 is from 'system'"),
    ({"conversations": [{"from": "human"}]}, "turn 1 must be"),
    ({"conversations": turns("q", "a"), "image": [3]}, '"image" must be a path or a list'),
    ({"conversations": turns("q", "a"), "image": {}}, '"image" must be a path or a list'),
    ({"conversation": []}, 'expected an object with a list "conversations"'),
    ([], 'expected an object with a list "conversations"'),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_records_name_file_and_line(record, message, tmp_path):
    good = {"conversations": turns("q", "a")}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(record) + "\n" + json.dumps(good))
    with pytest.raises(ConversationError) as raised:
        read_conversations(path)
    assert str(raised.value).startswith(f"{path}:3: ")
    assert message in str(raised.value)
    left_out = []
    assert len(read_conversations(path, on_error=left_out.append)) == 2
    assert len(left_out) == 1


def test_invalid_json_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"conversations": turns("q", "a")}) + '\n{"conversations": [\n')
    with pytest.raises(ConversationError, match=r"data\.jsonl:2: not valid JSON"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (",\n{]", "not valid JSON"),
        (",\n", "not valid JSON"),
        ("\n x]", "expected , or ]"),
        ("\n] x", "after the"),
    ],
)
def test_broken_arrays(tail, message, tmp_path):
    path = tmp_path / "data.json"
    path.write_text("[" + json.dumps({"conversations": turns("q", "a")}) + tail)
    with pytest.raises(ConversationError, match=r"data\.json:2: ") as raised:
        read_conversations(path)
    assert message in str(raised.value)


def test_arrays_objects_and_lines_read_alike(tmp_path):
    records = [{"conversations": turns(f"q{i}", "a\nb")} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1), encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text("\r\n".join(map(json.dumps, records)))
    (tmp_path / "c.json").write_text("\n".join(map(json.dumps, records)))
    expected = read_conversations(tmp_path / "b.jsonl")
    for name in ("a.json", "c.json"):
        assert [c.turns for c in read_conversations(tmp_path / name)] == [c.turns for c in expected]
    (tmp_path / "one.json").write_text(json.dumps(records[0], indent=1))
    assert len(read_conversations(tmp_path / "one.json")) == 1
    lines = json.dumps(records, indent=1).split("\n")
    sources = [c.source.rsplit(":", 1)[1] for c in read_conversations(tmp_path / "a.json")]
    assert [lines[int(line) - 1].strip() for line in sources] == ["{"] * 3


def test_the_images_folder_can_be_elsewhere(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"conversations": turns("<image>", "a"), "image": "x/y.png"}))
    assert read_conversations(path)[0].images[0].path == tmp_path / "x" / "y.png"
    moved = read_conversations(path, images="elsewhere")[0].images[0]
    assert moved == ImageFile("x/y.png", pathlib.Path("elsewhere/x/y.png"))


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty_files(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ConversationError, match="no usable conversation"):
        read_conversations(tmp_path / "data.json")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no conversation file at .*none\.json"):
        read_conversations(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConversationError, match=r"latin\.json:1: not UTF-8"):
        read_conversations(tmp_path / "latin.json")


def test_questions_without_answers_on_request(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"conversations": turns("q")}))
    assert read_conversations(tmp_path / "data.jsonl", need_answers=False)[0].turns[-1].role == "question"
