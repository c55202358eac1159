"""The engine's events -> answers in OpenAI's form, whole or in pieces.

What OpenAI's objects have no place for is added to them: the images of a chat's answer (`images`, each with
the `offset` in `content` before which it stands), and of a stream of several images the `index` of each.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import anyio.to_thread
from PIL import Image

from unitoken_jax.serve import requests
from unitoken_jax.serve.fields import ApiError
from unitoken_jax.serve.images import data_url, png_base64
from unitoken_jax.serve.protocol import Asked, ModelInfo

Events = AsyncGenerator[tuple[int, requests.Event], None]  # (number of the request, what happened to it)


async def chat_completion(info: ModelInfo, events: Events, number: int) -> dict[str, Any]:
    """The answer to a chat of `number` choices. Raises ApiError where one of them failed."""
    contents = [""] * number
    images: list[list[dict]] = [[] for _ in range(number)]
    reasons, usage = [""] * number, _Usage()
    async for index, event in events:
        if isinstance(event, requests.TextDelta):
            contents[index] += event.text
        elif isinstance(event, requests.ImageFinished):
            images[index].append(await _image_part(event.image, len(contents[index])))
        elif isinstance(event, requests.Finished):
            reasons[index] = event.reason
            usage.add(event)
        elif isinstance(event, requests.Failed):
            raise failure(event)
    choices = []
    for index in range(number):
        message: dict[str, Any] = {"role": "assistant", "content": contents[index]}
        if images[index]:
            message["images"] = images[index]
        choices.append(
            {"index": index, "message": message, "finish_reason": reasons[index], "logprobs": None}
        )
    return _chat_head(info, "chat.completion") | {"choices": choices, "usage": usage.of_chat()}


async def chat_chunks(info: ModelInfo, asked: Asked, events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """The same in pieces. Raises ApiError where a choice fails."""
    head = _chat_head(info, "chat.completion.chunk")
    lengths, usage = [0] * len(asked.requests), _Usage()

    def chunk(index: int, delta: dict, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return head | {"choices": [choice]} | ({"usage": None} if asked.usage else {})

    for index in range(len(asked.requests)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, event in events:
        if isinstance(event, requests.TextDelta):
            lengths[index] += len(event.text)
            yield chunk(index, {"content": event.text})
        elif isinstance(event, requests.ImageFinished):
            yield chunk(index, {"images": [await _image_part(event.image, lengths[index])]})
        elif isinstance(event, requests.Finished):
            usage.add(event)
            yield chunk(index, {}, event.reason)
        elif isinstance(event, requests.Failed):
            raise failure(event)
    if asked.usage:
        yield head | {"choices": [], "usage": usage.of_chat()}


async def image_response(asked: Asked, events: Events) -> dict[str, Any]:
    """The answer to a request for images. Raises ApiError where one of them failed."""
    data: list[dict] = [{} for _ in asked.requests]
    usage = _Usage()
    async for index, event in events:
        if isinstance(event, requests.ImageFinished):
            encode = data_url if asked.url else png_base64
            data[index] = {"url" if asked.url else "b64_json": await _in_thread(encode, event.image)}
        elif isinstance(event, requests.Finished):
            usage.add(event)
        elif isinstance(event, requests.Failed):
            raise failure(event)
    about = {"created": int(time.time()), "output_format": "png", "size": asked.size}
    return about | {"data": data, "usage": usage.of_images()}


async def image_events(kind: str, asked: Asked, events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """The same as events of a stream, `kind` "image_generation" or "image_edit". Raises ApiError."""
    about = {"output_format": "png", "size": asked.size, "background": "opaque", "quality": "auto"}
    shown = [0] * len(asked.requests)  # partial images of each
    next_row = [1] * len(asked.requests)  # that its next one must have
    whole: dict[int, Image.Image] = {}
    async for index, event in events:
        if isinstance(event, requests.ImageRows):
            if shown[index] < asked.partial and event.rows >= next_row[index]:
                partial = {"type": f"{kind}.partial_image", "partial_image_index": shown[index]}
                partial["b64_json"] = await _in_thread(png_base64, event.image)
                shown[index] += 1
                # They come at like distances; where the engine is ahead of a slow reader, fewer do.
                step = max(1, event.total_rows // (asked.partial + 1))
                next_row[index] = event.rows + step
                yield about | partial | {"created_at": int(time.time()), "index": index}
        elif isinstance(event, requests.ImageFinished):
            whole[index] = event.image
        elif isinstance(event, requests.Finished):
            usage = _Usage()
            usage.add(event)
            done = {"type": f"{kind}.completed", "b64_json": await _in_thread(png_base64, whole.pop(index))}
            yield about | done | {"created_at": int(time.time()), "index": index, "usage": usage.of_images()}
        elif isinstance(event, requests.Failed):
            raise failure(event)


def failure(event: requests.Failed) -> ApiError:
    """The error that a client is told of a request that failed after it was taken."""
    status = {"timeout": 504, "closed": 503}.get(event.kind, 500)
    return ApiError(status, event.message, code=event.kind)


def model_objects(info: ModelInfo) -> list[dict[str, Any]]:
    """What `/v1/models` lists."""
    about = {"id": info.name, "object": "model", "created": info.created, "owned_by": "unitoken"}
    limits = {"prompt_tokens": info.limits.prompt_tokens, "max_tokens": info.limits.answer_tokens}
    return [about | {"image_sizes": list(info.sizes), "guidance_scale": info.guidance, "limits": limits}]


class _Usage:
    """Tokens of a request's choices, whose prompt is one."""

    def __init__(self) -> None:
        self.prompt = self.written = 0

    def add(self, event: requests.Finished) -> None:
        self.prompt = event.prompt_tokens
        self.written += event.completion_tokens

    def of_chat(self) -> dict[str, int]:
        total = self.prompt + self.written
        return {"prompt_tokens": self.prompt, "completion_tokens": self.written, "total_tokens": total}

    def of_images(self) -> dict[str, int]:
        total = self.prompt + self.written
        return {"input_tokens": self.prompt, "output_tokens": self.written, "total_tokens": total}


def _chat_head(info: ModelInfo, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": info.name,
    }


async def _image_part(image: Image.Image, offset: int) -> dict[str, Any]:
    url = await _in_thread(data_url, image)
    return {"type": "image_url", "image_url": {"url": url}, "offset": offset}


async def _in_thread(function, image: Image.Image) -> str:
    return await anyio.to_thread.run_sync(function, image)
