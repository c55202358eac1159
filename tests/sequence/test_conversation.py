"""The public conversation format, and what is wrong with files in it."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unitoken_jax.sequence.conversation import (
    ConversationError,
    ImageFile,
    make_conversation,
    parse_conversation,
    read_conversations,
)

ROOT = pathlib.Path("root")


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_parts_in_reading_order():
    record = {
        "conversations": turns("a<image>b<|image|>", "<|image|>", "c", "d <image>"),
        "image": list("wxyz"),
    }
    found = parse_conversation(record, "f:1", ROOT)
    assert [turn.role for turn in found.turns] == ["question", "answer", "question", "answer"]
    image = {name: ImageFile(name, ROOT / name) for name in "wxyz"}
    assert found.turns[0].parts == ("a", image["w"], "b", image["x"])
    assert found.turns[1].parts == (image["y"],)
    assert found.turns[3].parts == ("d ", image["z"])
    assert found.images == list(image.values())
    assert found.source == "f:1"


@pytest.mark.parametrize("image", ["a.png", ["a.png"]])
def test_image_is_a_path_or_a_list(image):
    assert (
        parse_conversation({"conversations": turns("<image>", "x"), "image": image}, "f:1", ROOT)
        .images[0]
        .name
        == "a.png"
    )


@pytest.mark.parametrize("record", [{}, {"image": None}, {"image": []}])
def test_text_only(record):
    assert parse_conversation(record | {"conversations": turns("q", "a")}, "f:1", ROOT).images == []


pieces = st.lists(st.sampled_from(["red", "\n", " ", "<|image|>", "<image>", "x<y", "é"]), max_size=6)


@given(st.lists(pieces, min_size=2, max_size=6).filter(lambda values: len(values) % 2 == 0))
def test_nothing_is_lost_or_added(values):
    texts = ["x" + "".join(value) for value in values]
    count = sum(text.count("<|image|>") + text.count("<image>") for text in texts)
    names = [f"{i}.png" for i in range(count)]
    found = parse_conversation({"conversations": turns(*texts), "image": names}, "f:1", ROOT)
    written = ["".join(p if isinstance(p, str) else "@" for p in turn.parts) for turn in found.turns]
    assert written == [text.replace("<|image|>", "@").replace("<image>", "@") for text in texts]
    assert [image.name for image in found.images] == names
    assert all(part for turn in found.turns for part in turn.parts)


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
    with pytest.raises(ConversationError, match=r"latin\.json: not UTF-8"):
        read_conversations(tmp_path / "latin.json")


def test_questions_without_answers_on_request(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"conversations": turns("q")}))
    assert read_conversations(tmp_path / "data.jsonl", need_answers=False)[0].turns[-1].role == "question"


def test_dialogue():
    image = Image.new("RGB", (4, 4))
    found = make_conversation([["what is ", image, "?"], "red", [pathlib.Path("a.png")]])
    assert [turn.role for turn in found.turns] == ["question", "answer", "question"]
    assert found.turns[0].parts == ("what is ", image, "?")
    assert found.turns[2].parts == (ImageFile("a.png", pathlib.Path("a.png")),)


@pytest.mark.parametrize(
    ("given_turns", "message"),
    [
        ([], "no turns"),
        ([[]], "empty question"),
        ([["q"], [""]], "empty answer"),
        ([[3]], "a part is a int"),
        ([["<|image|>what"]], "<|image|> in a text part"),
    ],
)
def test_bad_dialogues(given_turns, message):
    with pytest.raises(ConversationError) as raised:
        make_conversation(given_turns)
    assert message in str(raised.value)
