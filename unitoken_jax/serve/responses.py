"""JSON, and errors in OpenAI's form, as responses."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from unitoken_jax.serve.fields import ApiError


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON in ASCII: text that is no UTF-8, in an error's message, cannot make a fault of it."""
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(json.dumps(body), status, headers, "application/json")


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """An error in OpenAI's form."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.status == 408:
        headers["connection"] = "close"  # the rest of it would be waited for
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)
