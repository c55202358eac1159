"""Bodies of requests: read within limits, and taken apart as JSON or as a multipart form."""

import asyncio
import contextlib
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from unitoken_jax.serve.fields import ApiError, read_json
from unitoken_jax.serve.limits import HttpLimits

MAX_FILES, MAX_FIELDS = 16, 32


class BodyBudget:
    """Bytes of requests that are in memory at one time, `free` of them still: those that are being read, and
    those whose images an answer still needs."""

    def __init__(self, limits: HttpLimits):
        self.limits, self.free = limits, limits.bodies_bytes

    async def read(self, request: Request, held: contextlib.ExitStack) -> bytes:
        """The body of `request`, which counts until `held` is closed. Raises ApiError where it is too large,
        too slow, or one too many. What is left of one that is refused, uvicorn reads and drops."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                await self._fill(body, request)
        except TimeoutError as error:
            message = f"the request has not come whole within {self.limits.body_seconds:g} s"
            raise ApiError(408, message, code="request_too_slow") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client has gone", code="disconnected") from error
        finally:
            held.callback(self._give_back, len(body))
        return bytes(body)

    def _give_back(self, size: int) -> None:
        self.free += size

    async def _fill(self, body: bytearray, request: Request) -> None:
        """Adds what comes to `body`."""
        limit = self.limits.body_bytes
        too_large = ApiError(413, f"the request is larger than {limit} bytes", code="request_too_large")
        announced = request.headers.get("content-length", "0")
        if not announced.isdigit() or int(announced) > limit:
            raise too_large
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise too_large
            if len(chunk) > self.free:
                raise ApiError(429, "too many large requests at one time", code="busy", retry_after=1)
            self.free -= len(chunk)
            body += chunk


def check_type(request: Request, expected: str) -> None:
    """Raises ApiError unless the body is `expected`, "application/json" for example. A page of another site
    can make a browser send JSON under other names without asking us first."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != expected:
        message = f"the content type is {given or 'not given'}; expected {expected}"
        raise ApiError(415, message, code="unsupported_media_type")


def json_object(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object. Raises ApiError."""
    try:
        values = read_json(body)
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON ({error})", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return values


def form(body: bytes, content_type: str) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """The text fields of a multipart form, and its files as (field, content), in order. Raises ApiError."""
    fields: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []

    def on_field(field) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        if name in fields:
            raise ApiError(400, f"{name:.100} is given twice", param=name[:100], code="invalid_value")
        try:
            fields[name] = (field.value or b"").decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, f"{name:.100} is not UTF-8", param=name[:100]) from error
        if len(fields) > MAX_FIELDS:
            raise ApiError(400, f"more than {MAX_FIELDS} fields", code="invalid_form")

    def on_file(file) -> None:
        file.file_object.seek(0)
        files.append(((file.field_name or b"").decode("utf-8", "replace"), file.file_object.read()))
        file.close()
        if len(files) > MAX_FILES:
            raise ApiError(400, f"more than {MAX_FILES} files", code="invalid_form")

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    try:
        # All of it is in memory already: nothing is written to disk.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"the body is no multipart form ({error})", code="invalid_form") from error
    return fields, files
