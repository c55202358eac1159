"""The public conversation format, and what is wrong with files in it."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unitoken_jax.sequence.conversation import (
    ImageFile,
    make_conversation,
    parse_conversation,
)
from unitoken_jax.sequence.errors import ConversationError

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
