"""Around every request: who may ask, headers that keep browsers safe, and counts."""

import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unitoken_jax.serve.fields import ApiError
from unitoken_jax.serve.limits import HttpLimits, check_addressed, check_key
from unitoken_jax.serve.metrics import Metrics
from unitoken_jax.serve.responses import error_response

# The page loads nothing but its own files and images that it holds itself, and nobody may frame it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
KEPT = ("/v1/", "/metrics")  # what a key is asked for


class Guard:
    """ASGI middleware. There are no CORS headers: pages of other sites cannot read what is answered."""

    def __init__(self, app: ASGIApp, limits: HttpLimits, metrics: Metrics, paths: Sequence[str]):
        self._app, self._limits, self._metrics, self._paths = app, limits, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), "none"

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_guarded)
            else:
                await self._app(scope, receive, send_guarded)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - start)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        try:
            check_addressed(self._limits.names, headers.get("host", ""), headers.get("origin"))
            if scope["path"].startswith(KEPT):
                check_key(self._limits.keys, headers.get("authorization"))
        except ApiError as error:
            return error
        return None
