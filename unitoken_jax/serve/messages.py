"""OpenAI's messages -> a conversation: text, and images by URL, of users and assistants in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from unitoken_jax.sequence.conversation import Conversation, ImageFile, Part, make_conversation
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.serve.fields import ApiError, Field, invalid, only, read_fields, shown, text, whole
from unitoken_jax.serve.images import ImageReader

LONGEST_TEXT = 1 << 20  # characters of a part; how many all may have depends on the server's limits


def read_messages(messages: Sequence[Mapping[str, Any]], images: ImageReader, longest: int) -> Conversation:
    """The conversation of OpenAI's `messages`, users' and assistants' in turn, of `longest` characters at
    most. Raises ApiError."""
    turns = []
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        fields = read_fields(_MESSAGE, message, f"{name}.")
        expected = ("user", "assistant")[number % 2]
        if fields["role"] != expected:
            raise invalid(
                f"{name}.role",
                f"is {shown(fields['role'])}; expected {expected}: this model knows users and assistants in "
                "turn, and no system (put what it is to know into the first user's message)",
            )
        if fields["images"] and expected == "user":
            raise invalid(f"{name}.images", "are an assistant's; a user's images are parts of content")
        parts = _parts(fields["content"], f"{name}.content", images)
        turns.append(_with_images(parts, fields["images"], f"{name}.images", images))
    return conversation_of(turns, longest)


def conversation_of(turns: Sequence[Sequence[Part]], longest: int) -> Conversation:
    """The conversation of `turns`, a user's first, of `longest` characters at most. Raises ApiError."""
    length = sum(len(part) for parts in turns for part in parts if isinstance(part, str))
    if length > longest:
        raise invalid("messages", f"have {length} characters; expected {longest} at most", "prompt_too_long")
    try:
        return make_conversation(turns, "messages" if len(turns) > 1 else "the question")
    except RowError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error


def _parts(content: Any, name: str, images: ImageReader) -> list[Part]:
    """A message's `content`, checked to be text or a list of objects, as a conversation's parts."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    parts: list[Part] = []
    for number, part in enumerate(content):
        here = f"{name}[{number}]"
        kind = part.get("type")
        if kind == "text":
            fields = read_fields({"type": _TYPE, "text": text(LONGEST_TEXT, required=True)}, part, f"{here}.")
            parts.append(fields["text"])
        elif kind == "image_url":
            parts.append(_image_part(part, here, images))
        else:
            raise invalid(f"{here}.type", f"is {shown(kind)}; expected text or image_url")
    return parts


def _image_part(part: Mapping[str, Any], name: str, images: ImageReader, more: Mapping = {}) -> ImageFile:
    """The image of {"type": "image_url", "image_url": {"url"}}; `more` are fields beside these."""
    fields = read_fields(
        {"type": _TYPE, "image_url": Field(json_object_of, {}, required=True), **more}, part, f"{name}."
    )
    url = read_fields(_IMAGE_URL, fields["image_url"], f"{name}.image_url.")["url"]
    return images.read_url(url, f"{name}.image_url.url")


def _with_images(parts: list[Part], drawn: Sequence[Mapping], name: str, images: ImageReader) -> list[Part]:
    """An answer's parts with the images that it drew, at their offsets in its text, as `answers.message` has
    them."""
    if not drawn:
        return parts
    written = "".join(part for part in parts if isinstance(part, str))
    if any(not isinstance(part, str) for part in parts):
        raise invalid(name, "are given, and content has images too: give them in one of these places")
    result: list[Part] = []
    start = 0
    for number, image in enumerate(drawn):
        here = f"{name}[{number}]"
        end = image.get("offset", len(written))
        if type(end) is not int or not start <= end <= len(written):
            raise invalid(f"{here}.offset", f"is {shown(end)}; expected {start} to {len(written)}")
        result += [written[start:end]] if end > start else []
        result.append(_image_part(image, here, images, {"offset": whole(0, LONGEST_TEXT)}))
        start = end
    return result + ([written[start:]] if start < len(written) else [])


def list_of_messages(value: Any) -> list[dict]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"is {shown(value)}; expected a list of messages")
    return value


def _list_of_objects(value: Any) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"is {shown(value)}; expected a list of objects")
    return value


def json_object_of(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}; expected an object")
    return value


def _content(value: Any) -> str | list[dict]:
    return value if isinstance(value, str) else _list_of_objects(value)


_TYPE = text(20)
_IMAGE_URL = {"url": text(1 << 30, required=True), "detail": only("auto")}
_MESSAGE = {
    "role": text(20, required=True),
    "content": Field(_content, {}),
    "images": Field(_list_of_objects, {}, ()),
    # What the stock client has in an answer that is sent back as it came.
    **{name: only(None) for name in ("refusal", "annotations", "audio", "function_call", "tool_calls")},
}

_IMAGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {"url": {"type": "string", "minLength": 1}, "detail": {"const": "auto"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "image_url"],
    "additionalProperties": False,
}
_TEXT_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "description": "Users and assistants in turn, a user first and last.",
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["user", "assistant"]},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IMAGE_SCHEMA]}},
                ]
            },
            "images": {
                "type": "array",
                "items": _IMAGE_SCHEMA
                | {"properties": _IMAGE_SCHEMA["properties"] | {"offset": {"type": "integer", "minimum": 0}}},
                "description": "Of an assistant: images it drew, before the content's character `offset`.",
            },
        },
        "required": ["role"],
        "additionalProperties": False,
    },
}
