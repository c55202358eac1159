"""OpenAI's requests -> the engine's requests: fields, messages, and what is wrong with them.

The tables of fields (`chat_fields`, ...) are what requests are read with and what the OpenAPI document shows.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from unitoken_jax.sequence.conversation import Conversation, Part
from unitoken_jax.serve.fields import (
    ApiError,
    Field,
    choice,
    flag,
    invalid,
    only,
    read_fields,
    real,
    shown,
    text,
    whole,
)
from unitoken_jax.serve.images import ImageReader
from unitoken_jax.serve.messages import (
    MESSAGES_SCHEMA,
    conversation_of,
    json_object_of,
    list_of_messages,
    read_messages,
)
from unitoken_jax.serve.requests import EngineLimits, ImageRequest, ImageSettings, TextRequest
from unitoken_jax.setting_ranges import MAX_SEED

MAX_CHOICES = 8  # answers, or images, to one request
MAX_STOPS = 4  # as OpenAI has it
MAX_IMAGES = 4  # images that an answer draws
MAX_PARTIAL = 64


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The model that is served, as requests and `/v1/models` know it. `image_sizes`: (height, width) px of
    what it draws, the default first; none where it draws nothing. `guidance`: its own. `created`: seconds
    since 1970."""

    name: str
    created: int
    image_sizes: tuple[tuple[int, int], ...]
    guidance: float
    limits: EngineLimits

    @property
    def longest_text(self) -> int:
        """Characters of a prompt. The tokenizer holds up the whole process for as long as it reads, seconds
        for a megabyte, so what cannot fit is refused before: a token has four characters or so."""
        return 16 * self.limits.prompt_tokens

    @functools.cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """{"WxH": (height, width)} of `image_sizes`."""
        return {f"{width}x{height}": (height, width) for height, width in self.image_sizes}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a client asked for: one engine request for each of `n` choices, and how it wants the answer.

    `usage`: of a streamed answer, whether its tokens are to be counted at its end; `partial`: images, at
    most, that are shown before one is whole; `url`: images as data URLs.
    """

    requests: Sequence[TextRequest | ImageRequest]
    stream: bool
    usage: bool = False
    partial: int = 0
    url: bool = False
    size: str = ""


_SEED = whole(0, MAX_SEED, 0, "The same seed gives the same answer, whatever else is running.")
_TOP_K = "The likeliest tokens that are sampled from; absent: {}."


def chat_fields(info: ModelInfo) -> dict[str, Field]:
    """The fields of /v1/chat/completions."""
    limit = info.limits.answer_tokens
    draws = MAX_IMAGES if info.image_sizes else 0
    return {
        "model": dataclasses.replace(_model(info), required=True),
        "messages": Field(list_of_messages, MESSAGES_SCHEMA, required=True),
        "max_tokens": whole(1, limit, about="Of the answer's text."),
        "max_completion_tokens": whole(1, limit, about="max_tokens, by its newer name."),
        "temperature": real(0, 2, 0.0, "0 takes the likeliest token."),
        "top_k": whole(1, 1 << 20, about=_TOP_K.format("all")),
        "seed": _SEED,
        "n": whole(1, MAX_CHOICES, 1, "Answers to the question."),
        "stop": Field(_stops, STOP_SCHEMA, ()),
        "stream": flag("Send the answer in pieces, as server-sent events."),
        "stream_options": Field(_include_usage, STREAM_OPTIONS_SCHEMA, False),
        "max_images": whole(0, draws, draws, "Images that the answer may draw; 0: text alone."),
        "guidance_scale": _guidance(info),
        "top_p": only(1),
        "frequency_penalty": only(0),
        "presence_penalty": only(0),
        "logprobs": only(False),
        "store": only(False),
        "response_format": only({"type": "text"}),
    }


def generation_fields(info: ModelInfo) -> dict[str, Field]:
    """The fields of /v1/images/generations."""
    sizes = [*info.sizes, "auto"]
    return {
        "model": _model(info),
        "prompt": text(info.longest_text, required=True, about="What to draw."),
        "n": whole(1, MAX_CHOICES, 1, "Images of the prompt."),
        "size": choice(sizes, "auto", "WIDTHxHEIGHT in pixels; auto: as in training."),
        "seed": _SEED,
        "guidance_scale": _guidance(info),
        "temperature": real(0, 2, about="0 takes the likeliest code; absent: the model's."),
        "top_k": whole(1, 1 << 20, about=_TOP_K.format("the model's")),
        "response_format": choice(["b64_json", "url"], "b64_json", "PNG in base64, or a data URL."),
        "stream": flag("Send images as they are drawn, as server-sent events."),
        "partial_images": whole(0, MAX_PARTIAL, 0, "Of a stream: images before each is whole."),
        "output_format": only("png"),
        "quality": only("auto"),
        "background": only("auto"),
        "moderation": only("auto"),
    }


def edit_fields(info: ModelInfo) -> dict[str, Field]:
    """The fields of /v1/images/edits but its files, `image` or `image[]`."""
    return generation_fields(info)


def _model(info: ModelInfo) -> Field:
    schema = {"type": "string", "enum": [info.name], "description": "As /v1/models has it."}
    return dataclasses.replace(text(200), schema=schema)


def _guidance(info: ModelInfo) -> Field:
    return real(0.01, 100, about=f"Classifier-free guidance of images, 1 is none; absent: {info.guidance:g}.")


def read_chat(info: ModelInfo, values: Mapping[str, Any], images: ImageReader) -> Asked:
    """A body of /v1/chat/completions. Raises ApiError."""
    fields = read_fields(chat_fields(info), values)
    check_model(info, fields["model"])
    if fields["stream_options"] and not fields["stream"]:
        raise invalid("stream_options", "is for streamed answers alone: set stream")
    if fields["max_tokens"] is not None and fields["max_completion_tokens"] is not None:
        raise invalid("max_tokens", "is given, and max_completion_tokens too: give one of them")
    request = TextRequest(
        read_messages(fields["messages"], images, info.longest_text),
        max_tokens=fields["max_completion_tokens"] or fields["max_tokens"],
        temperature=fields["temperature"],
        top_k=fields["top_k"],
        stop=fields["stop"],
        seed=fields["seed"],
        max_images=fields["max_images"],
        drawing=ImageSettings(guidance=fields["guidance_scale"]),
    )
    requests = [dataclasses.replace(request, index=index) for index in range(fields["n"])]
    return Asked(requests, fields["stream"], usage=fields["stream_options"])


def read_generation(info: ModelInfo, values: Mapping[str, Any]) -> Asked:
    """A body of /v1/images/generations. Raises ApiError."""
    fields = read_fields(generation_fields(info), values)
    return _drawing(info, fields, fields["prompt"])


def read_edit(
    info: ModelInfo, values: Mapping[str, str], files: Sequence[tuple[str, bytes]], images: ImageReader
) -> Asked:
    """A form of /v1/images/edits: its text fields and its (field, content) files. Raises ApiError."""
    fields = read_fields(edit_fields(info), values, form=True)
    if not files:
        raise ApiError(400, "image is missing: send one file or more", param="image", code="missing_field")
    parts: list[Part] = []
    for number, (name, content) in enumerate(files):
        if name not in ("image", "image[]"):
            raise ApiError(
                400,
                f"file {name:.100} is not supported here; supported is image",
                param=name,
                code="unsupported_field",
            )
        parts.append(images.read(content, f"image[{number}]"))
    return _drawing(info, fields, conversation_of([[*parts, fields["prompt"]]], info.longest_text))


def _drawing(info: ModelInfo, fields: Mapping[str, Any], prompt: str | Conversation) -> Asked:
    """The images that `fields` ask for."""
    check_model(info, fields["model"])
    if not info.image_sizes:
        raise ApiError(400, "this model draws no images", code="not_supported")
    if fields["partial_images"] and not fields["stream"]:
        raise invalid("partial_images", "is for streamed images alone: set stream")
    if isinstance(prompt, str) and not prompt.strip():
        raise invalid("prompt", "is empty; say what to draw")
    size = info.sizes.get(fields["size"], info.image_sizes[0])
    settings = ImageSettings(fields["guidance_scale"], fields["top_k"], fields["temperature"], size)
    request = ImageRequest(prompt, fields["seed"], 0, settings, partial=fields["partial_images"] > 0)
    return Asked(
        [dataclasses.replace(request, index=index) for index in range(fields["n"])],
        fields["stream"],
        partial=fields["partial_images"],
        url=fields["response_format"] == "url",
        size=f"{size[1]}x{size[0]}",
    )


def check_model(info: ModelInfo, name: str | None) -> None:
    """Raises ApiError where a request names another model."""
    if name not in (None, info.name):
        raise ApiError(
            404,
            f"there is no model {shown(name)} here; this is {info.name}",
            param="model",
            code="model_not_found",
        )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    texts = isinstance(stops, list) and all(isinstance(stop, str) and 0 < len(stop) <= 200 for stop in stops)
    if not texts or len(stops) > MAX_STOPS:
        raise ValueError(f"is {shown(value)}; expected text, or a list of at most {MAX_STOPS}")
    return tuple(stops)


def _include_usage(value: Any) -> bool:
    return read_fields({"include_usage": flag()}, json_object_of(value), "stream_options.")["include_usage"]


STOP_SCHEMA = {
    "description": "The answer ends before any of these texts.",
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 200},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 200},
            "maxItems": MAX_STOPS,
        },
    ],
}
STREAM_OPTIONS_SCHEMA = {
    "type": "object",
    "properties": {"include_usage": {"type": "boolean"}},
    "additionalProperties": False,
    "description": "Of a stream: whether tokens are counted at its end.",
}
