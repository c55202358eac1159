import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from tests.helpers.stand_in_engine import StandInEngine
from tests.helpers.tiny_model import noise
from tests.serve.conftest import info_of
from unitoken_jax.sequence.conversation import ImageFile
from unitoken_jax.sequence.image import ImageError, open_image
from unitoken_jax.serve import fields
from unitoken_jax.serve.fields import ApiError
from unitoken_jax.serve.images import ImageReader
from unitoken_jax.serve.openapi import openapi_document
from unitoken_jax.serve.protocol import chat_fields, read_chat, read_edit, read_generation
from unitoken_jax.serve.requests import EngineLimits

INFO = info_of(StandInEngine())
FIRST = "messages[0].content[0].image_url.url"
HELLO = {"model": "stand-in", "messages": [{"role": "user", "content": "hello"}]}


def reader(**changes) -> ImageReader:
    return ImageReader(**{"max_pixels": 10_000, "max_bytes": 1 << 20} | changes)


def png(image=None, **settings) -> bytes:
    file = io.BytesIO()
    (image or noise(0)).save(file, settings.pop("format", "PNG"), **settings)
    return file.getvalue()


def url(data: bytes, kind="image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(link: str) -> dict:
    return {"type": "image_url", "image_url": {"url": link}}


def says(*content, role="user"):
    return {"role": role, "content": list(content)}


def chat(**changes):
    return read_chat(INFO, HELLO | changes, reader())


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"messages": []}, "messages", "expected a list of messages"),
        ({"messages": "hello"}, "messages", "expected a list of messages"),
        ({"messages": [says(role="system")]}, "messages[0].role", "no system"),
        ({"messages": [says("x")]}, "messages[0].content", "list of objects"),
        ({"messages": [says({"type": "input_audio"})]}, "messages[0].content[0].type", "text or"),
        (
            {"messages": [says({"type": "text", "text": "a", "x": 1})]},
            "messages[0].content[0].x",
            "type, text",
        ),
        (
            {"messages": [says(part("file:///etc/passwd"))]},
            FIRST,
            "data URL",
        ),
        ({"messages": [says(part("/etc/passwd"))]}, FIRST, "data URL"),
        (
            {"messages": [says(part("http://x/a"))]},
            FIRST,
            "may not read from",
        ),
        ({"messages": [says(part("data:image/png,a"))]}, FIRST, "base64"),
        ({"messages": [says(part(url(b"x")))]}, FIRST, "PNG, JPEG"),
        ({"messages": [says()]}, "messages", "empty question"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
        ({"messages": [{"role": "user", "content": "a <image>"}]}, "messages", "<image>"),
        ({"messages": [*HELLO["messages"] * 2]}, "messages[1].role", "expected assistant"),
        ({"messages": [HELLO["messages"][0] | {"name": "me"}]}, "messages[0].name", "supported are role"),
        ({"messages": [HELLO["messages"][0] | {"images": [part("x")]}]}, "messages[0].images", "assistant's"),
        ({"messages": [{"role": "user", "content": "a" * 32_769}]}, "messages", "32768 at most"),
        ({"messages": [says(*[{"type": "text", "text": "a" * 9_000}] * 4)]}, "messages", "36000 characters"),
        ({"max_tokens": 0}, "max_tokens", "1 to 512"),
        ({"max_tokens": 513}, "max_tokens", "1 to 512"),
        ({"max_tokens": 2.5}, "max_tokens", "2.5"),
        ({"max_tokens": float("nan")}, "max_tokens", "NaN"),
        ({"max_tokens": True}, "max_tokens", "true"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "one of them"),
        ({"temperature": True}, "temperature", "number from 0 to 2"),
        ({"temperature": float("inf")}, "temperature", "number from 0 to 2"),
        ({"seed": -1}, "seed", "4294967295"),
        ({"seed": 1 << 32}, "seed", "4294967295"),
        ({"n": 9}, "n", "1 to 8"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "expected text"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream"),
        ({"stream_options": {"usage": True}, "stream": True}, "stream_options.usage", "include_usage"),
        ({"max_images": 5}, "max_images", "0 to 4"),
        ({"guidance_scale": 0}, "guidance_scale", "0.01"),
        ({"presence_penalty": 0.5}, "presence_penalty", "0 alone"),
        ({"logprobs": 0}, "logprobs", "false alone"),
        ({"tools": []}, "tools", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"model": None}, "model", "missing"),
        ({"x\ud800" * 200: 1}, None, "unknown"),
    ],
)
def test_a_chat_that_cannot_be_is_refused_by_name(changes, param, message):
    with pytest.raises(ApiError) as error:
        chat(**changes)
    assert error.value.status == 400
    assert error.value.param == param or param is None
    body = error.value.body()["error"]
    assert message in body["message"]
    assert body["type"] == "invalid_request_error"
    assert len(body["message"]) < 700
    body["message"].encode()


def test_null_is_the_default_and_what_changes_nothing_may_be_sent():
    names = [name for name in chat_fields(INFO) if name not in ("model", "messages")]
    asked = chat(**dict.fromkeys(names))
    harmless = {
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
    }
    for one in (asked, chat(**harmless)):
        (request,) = one.requests
        assert (request.max_tokens, request.temperature, request.seed, request.stop) == (None, 0.0, 0, ())
        assert request.max_images == 4
        assert not one.stream


def test_a_conversation_has_turns_and_images_in_their_order():
    picture, drawn = png(), part(url(png(noise(1))))
    answer = {"role": "assistant", "content": "one two", "images": [drawn | {"offset": 3}]}
    text = [{"type": "text", "text": word} for word in ("left", "right")]
    asked = chat(messages=[says(text[0], part(url(picture)), text[1]), answer, says(*text)])
    turns = asked.requests[0].conversation.turns
    assert [turn.role for turn in turns] == ["question", "answer", "question"]
    assert [part if isinstance(part, str) else "image" for turn in turns for part in turn.parts] == [
        *("left", "image", "right"),
        *("one", "image", " two"),
        *("left", "right"),
    ]
    assert isinstance(turns[0].parts[1], ImageFile)
    assert turns[0].parts[1].path.data == picture
    answer["images"][0]["offset"] = 8
    with pytest.raises(ApiError, match="expected 0 to 7"):
        chat(messages=[HELLO["messages"][0], answer, HELLO["messages"][0]])


def test_choices_differ_in_their_index_alone():
    asked = chat(n=3.0, max_completion_tokens=5, stop="end", seed=4, top_k=2, guidance_scale=2)
    assert [request.index for request in asked.requests] == [0, 1, 2]
    assert {
        (request.max_tokens, request.stop, request.seed, request.top_k) for request in asked.requests
    } == {(5, ("end",), 4, 2)}
    assert asked.requests[0].drawing.guidance == 2.0


def test_an_edit_takes_its_numbers_as_text():
    values = {"prompt": "7", "n": "2", "seed": "5", "stream": "true", "partial_images": "3", "size": "24x16"}
    asked = read_edit(INFO, values, [("image", png())], reader())
    assert [request.index for request in asked.requests] == [0, 1]
    assert asked.requests[0].settings.size == (16, 24)
    assert asked.requests[0].prompt.turns[0].parts[1] == "7"
    assert (asked.stream, asked.partial, asked.size) == (True, 3, "24x16")
    for wrong in ({"n": "two"}, {"seed": "NaN"}, {"stream": "1"}):
        with pytest.raises(ApiError, match=f"{next(iter(wrong))} is"):
            read_edit(INFO, values | wrong, [("image", png())], reader())
    for files, param in (([], "image"), ([("mask", png())], "mask")):
        with pytest.raises(ApiError) as error:
            read_edit(INFO, values, files, reader())
        assert error.value.param == param


def test_a_model_that_draws_nothing_says_so():
    info = info_of(StandInEngine(EngineLimits(image_rows=0)))
    with pytest.raises(ApiError, match="draws no images"):
        read_generation(info, {"prompt": "x"})
    with pytest.raises(ApiError, match="max_images"):
        read_chat(info, HELLO | {"max_images": 1}, reader())
    assert read_chat(info, HELLO, reader()).requests[0].max_images == 0


def bomb(side: int) -> bytes:
    """A PNG file that says it has side x side px."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PNG, JPEG"),
        (b"P6 2 2 255\n" + bytes(12), "PNG, JPEG"),
        (png(Image.new("RGB", (300, 300))), "more than|may have"),
        (png(Image.new("L", (1000, 2))), "100 times"),
        (png()[:60], "PNG|size|damaged"),
    ],
)
def test_a_hostile_image_is_refused(data, message):
    with pytest.raises((ApiError, ImageError), match=message):
        open_image(reader().read(data, "image[0]").path)  # the engine does this when it takes the request


@pytest.mark.parametrize("side", [1000, 9_000, 40_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(ApiError, match=r"px|opened"):
        reader().read(bomb(side), "image[0]")


def test_all_images_of_a_request_share_its_limits():
    images = reader(max_pixels=24 * 16 * 2)
    for _ in range(2):
        images.read(png(), "image[0]")
    with pytest.raises(ApiError, match="24 x 16 px"):
        images.read(png(), "image[2]")


def test_every_field_is_in_the_document():
    document = openapi_document(INFO)
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"].keys() == chat_fields(INFO).keys()
    assert body["schema"]["required"] == ["model", "messages"]
    number = {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}
    number["description"] = "Answers to the question."
    assert body["schema"]["properties"]["n"] == {"anyOf": [number, {"type": "null"}]}


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 100_000, "1" * 10_000, "", "{"])
def test_what_is_no_json_is_an_error(text):
    with pytest.raises(ValueError):
        fields.read_json(text)
