"""The HTTP server as a starlette application: OpenAI's endpoints, health, metrics, document and page."""

import asyncio
import contextlib
import json
import pathlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from unitoken_jax.serve import answers, protocol
from unitoken_jax.serve.bodies import BodyBudget, check_type, form, json_object
from unitoken_jax.serve.fields import ApiError
from unitoken_jax.serve.guard import Guard
from unitoken_jax.serve.images import ImageReader
from unitoken_jax.serve.limits import HttpLimits
from unitoken_jax.serve.metrics import CONTENT_TYPE, Metrics
from unitoken_jax.serve.openapi import openapi_document
from unitoken_jax.serve.protocol import Asked, ModelInfo
from unitoken_jax.serve.requests import (
    Event,
    Failed,
    Finished,
    Handle,
    ImageRequest,
    QueueFull,
    ServingEngine,
    Unavailable,
)
from unitoken_jax.serve.requests import Request as EngineRequest
from unitoken_jax.serve.responses import error_response, json_response

PAGE = pathlib.Path(__file__).parent / "page"
PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Prompts that are read at one time: each may hold its images' pixels.
READERS = 2


class Server:
    """The endpoints before `engine`. `progress`: (programs compiled, of how many), for /health."""

    def __init__(self, engine: ServingEngine, info: ModelInfo, limits: HttpLimits = HttpLimits()):
        self.engine, self.info, self.limits = engine, info, limits
        self.progress = (0, 0)
        self.metrics = Metrics(engine)
        self._bodies = BodyBudget(limits)
        self._readers = anyio.CapacityLimiter(READERS)

    def app(self, on_stop: Callable[[], None] = lambda: None) -> Starlette:
        """The application; `on_stop` is called, in a thread, when the server has stopped listening."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await anyio.to_thread.run_sync(on_stop)

        get, post = ["GET"], ["POST"]
        routes = [
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/images/generations", self.generate, methods=post),
            Route("/v1/images/edits", self.edit, methods=post),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name}", self.model, methods=get),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.prometheus, methods=get),
            Route("/openapi.json", _constant(openapi_document(self.info)), methods=get),
            *_page_routes(),
        ]
        handlers: dict[Any, Any] = {ApiError: _on_error, HTTPException: _on_error, Exception: _on_fault}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        app.add_middleware(
            Guard, limits=self.limits, metrics=self.metrics, paths=[route.path for route in routes]
        )
        return app

    async def chat(self, request: Request) -> "Answer":
        """POST /v1/chat/completions."""
        check_type(request, "application/json")
        async with self._bodies.read(request) as body:
            asked = await self._read(lambda: protocol.read_chat(self.info, json_object(body), self._images()))
            handles = await self._submit(asked)
        number = len(asked.requests)
        if not asked.stream:
            return Answer(
                self, handles, whole=lambda events: answers.chat_completion(self.info, events, number)
            )
        return Answer(self, handles, pieces=lambda events: answers.chat_chunks(self.info, asked, events))

    async def generate(self, request: Request) -> "Answer":
        """POST /v1/images/generations."""
        check_type(request, "application/json")
        async with self._bodies.read(request) as body:
            asked = await self._read(lambda: protocol.read_generation(self.info, json_object(body)))
            return self._image_answer("image_generation", asked, await self._submit(asked))

    async def edit(self, request: Request) -> "Answer":
        """POST /v1/images/edits."""
        check_type(request, "multipart/form-data")
        kind = request.headers["content-type"]
        async with self._bodies.read(request) as body:
            asked = await self._read(lambda: protocol.read_edit(self.info, *form(body, kind), self._images()))
            return self._image_answer("image_edit", asked, await self._submit(asked))

    def _image_answer(self, kind: str, asked: Asked, handles: Sequence[Handle]) -> "Answer":
        if not asked.stream:
            return Answer(self, handles, whole=lambda events: answers.image_response(asked, events))
        return Answer(self, handles, pieces=lambda events: answers.image_events(kind, asked, events))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response({"object": "list", "data": answers.model_objects(self.info)})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        protocol.check_model(self.info, request.path_params["name"])
        return json_response(answers.model_objects(self.info)[0])

    async def health(self, request: Request) -> Response:
        """GET /health: 200 when every program is compiled and requests are taken."""
        compiled, programs = self.progress
        ready = self.engine.ready
        status = "ready" if ready else "stopping" if programs and compiled == programs else "starting"
        body = {"status": status, "programs": programs, "compiled": compiled}
        return json_response(body, 200 if ready else 503)

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _images(self) -> ImageReader:
        return ImageReader(self.limits.pixels, self.limits.body_bytes, self.limits.hosts)

    async def _read(self, read: Callable[[], Asked]) -> Asked:
        """Runs `read` in a thread, since a request may be large and its images far away."""
        return await anyio.to_thread.run_sync(read)

    async def _submit(self, asked: Asked) -> list[Handle]:
        """Gives all of `asked` to the engine, or nothing. Raises ApiError."""
        handles: list[Handle] = []

        def take(request: EngineRequest) -> None:  # notes it even if the coroutine was cancelled meanwhile
            handles.append(self.engine.submit(request))

        try:
            for one in asked.requests:
                await anyio.to_thread.run_sync(take, one, limiter=self._readers)
        except BaseException as error:
            for handle in handles:
                handle.cancel()
            raise _refusal(error) from error
        return handles


def _refusal(error: BaseException) -> BaseException:
    """What a client is told of an error of `ServingEngine.submit`; `error` itself where that is a fault."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, Unavailable):
        return ApiError(503, str(error), code="unavailable", retry_after=5.0)
    if isinstance(error, ValueError):
        return ApiError(400, str(error), code="invalid_value")
    return error


class Answer:
    """The response to what the engine was given: `whole`, one JSON object made of all events, or `pieces`, a
    server-sent event for each of them. When the client goes, its requests are cancelled."""

    def __init__(
        self,
        server: Server,
        handles: Sequence[Handle],
        whole: Callable[[answers.Events], Awaitable[dict]] | None = None,
        pieces: Callable[[answers.Events], AsyncGenerator[dict, None]] | None = None,
    ):
        self._server, self._handles, self._whole, self._pieces = server, handles, whole, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_disconnection(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = work.done()
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            for handle in self._handles:
                handle.cancel()
        if finished:
            work.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events()) as events:
            if self._whole is not None:
                try:
                    response = json_response(await self._whole(events))
                except ApiError as error:
                    response = error_response(error)
                await response(scope, receive, send)
            elif self._pieces is not None:
                async with contextlib.aclosing(self._pieces(events)) as pieces:
                    await _send_events(pieces, send)

    async def _events(self) -> answers.Events:
        """(number of the request, event) of all requests, as they come."""
        start = time.monotonic()
        # At most one waits here: what else a slow client has not read stays with its handle, which keeps only
        # the latest of an image's partial ones.
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue(1)

        async def pump(index: int, handle: Handle) -> None:
            first = True
            kind = "image" if isinstance(handle.request, ImageRequest) else "text"
            async for event in handle:
                if first:
                    self._server.metrics.first_token.labels(kind).observe(time.monotonic() - start)
                    first = False
                await queue.put((index, event))

        tasks = [asyncio.create_task(pump(index, handle)) for index, handle in enumerate(self._handles)]
        try:
            unfinished = len(tasks)
            while unfinished:
                index, event = await queue.get()
                unfinished -= isinstance(event, Finished | Failed)
                yield index, event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnection(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_events(pieces: AsyncIterator[dict], send: Send) -> None:
    """Server-sent events, in OpenAI's form: the type of those that have one is their name."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(text: str, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

    ended = ""
    try:
        async for piece in pieces:
            kind = piece.get("type")
            name = f"event: {kind}\n" if kind else ""
            ended = "" if kind else "data: [DONE]\n\n"
            await write(f"{name}data: {json.dumps(piece)}\n\n")
    except ApiError as error:  # too late for a status
        ended = f"data: {json.dumps(error.body())}\n\n"
    await write(ended, more=False)


async def _on_error(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None)  # what is allowed, of a method that is not
    if isinstance(error, HTTPException):
        known = {404: f"there is no {request.url.path:.200}", 405: f"{request.method} is not for this path"}
        error = ApiError(error.status_code, known.get(error.status_code, error.detail), code="not_found")
    assert isinstance(error, ApiError)
    return error_response(error, headers)


async def _on_fault(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "the server failed; its log says why", code="internal"))


def _constant(document: dict) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return json_response(document)

    return endpoint


def _page_routes() -> list[Route]:
    """A route for each file of the page, which is read now: no request names a file."""
    routes = []
    for file in sorted(PAGE.iterdir()):
        if file.suffix in PAGE_TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            routes.append(Route(path, _file(file.read_bytes(), PAGE_TYPES[file.suffix]), methods=["GET"]))
    return routes


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(content, headers={"cache-control": "no-cache"}, media_type=kind)

    return endpoint
