"""The HTTP server as a starlette application: OpenAI's endpoints, health, metrics, document and page."""

import asyncio
import contextlib
import functools
import json
import pathlib
import re
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
_IMAGE_FIELD = re.compile(r"messages\[\d+\][^\s:]*|image\[\d+\]")  # as images are named in messages
PARSERS = 16  # requests that are taken apart at one time, their images fetched
READERS = 2  # prompts that the engine reads at one time: each holds its images' pixels


class Server:
    """The endpoints before `engine`. `progress`: (programs compiled, of how many), for /health."""

    def __init__(self, engine: ServingEngine, info: ModelInfo, limits: HttpLimits = HttpLimits()):
        self.engine, self.info, self.limits = engine, info, limits
        self.progress = (0, 0)
        self.metrics = Metrics(engine)
        self._bodies = BodyBudget(limits)
        self._parsers, self._readers = anyio.CapacityLimiter(PARSERS), anyio.CapacityLimiter(READERS)

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

        def read(body: bytes) -> Asked:
            return protocol.read_chat(self.info, json_object(body), self._images())

        return await self._answer(
            request,
            read,
            lambda asked, events: answers.chat_completion(self.info, events, len(asked.requests)),
            lambda asked, events: answers.chat_chunks(self.info, asked, events),
        )

    async def generate(self, request: Request) -> "Answer":
        """POST /v1/images/generations."""
        check_type(request, "application/json")

        def read(body: bytes) -> Asked:
            return protocol.read_generation(self.info, json_object(body))

        return await self._answer(
            request, read, answers.image_response, functools.partial(answers.image_events, "image_generation")
        )

    async def edit(self, request: Request) -> "Answer":
        """POST /v1/images/edits."""
        check_type(request, "multipart/form-data")
        kind = request.headers["content-type"]

        def read(body: bytes) -> Asked:
            return protocol.read_edit(self.info, *form(body, kind), self._images())

        return await self._answer(
            request, read, answers.image_response, functools.partial(answers.image_events, "image_edit")
        )

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

    async def _answer(
        self, request: Request, read: Callable[[bytes], Asked], whole: "Whole", pieces: "Pieces"
    ) -> "Answer":
        """Reads what is asked, in a thread as it may be large and its images far away, and gives it to the
        engine. Raises ApiError."""
        with contextlib.ExitStack() as held:
            body = await self._bodies.read(request, held)
            asked = await anyio.to_thread.run_sync(read, body, limiter=self._parsers)
            del body
            handles = await self._submit(asked)
            return Answer(self.metrics, asked, handles, pieces if asked.stream else whole, held.pop_all())

    async def _submit(self, asked: Asked) -> list[Handle]:
        """Gives all of `asked` to the engine, or nothing. Raises ApiError."""
        handles: list[Handle] = []

        def take(request: EngineRequest) -> None:  # notes it even if the coroutine was cancelled meanwhile
            handles.append(self.engine.submit(request))

        try:
            for one in asked.requests:
                # A text need not wait until somebody's images are read.
                limiter = self._readers if _has_images(one) else None
                await anyio.to_thread.run_sync(take, one, limiter=limiter)
        except BaseException as error:
            for handle in handles:
                handle.cancel()
            raise _refusal(error) from error
        return handles


def _has_images(request: EngineRequest) -> bool:
    asked = request.prompt if isinstance(request, ImageRequest) else request.conversation
    return not isinstance(asked, str) and bool(asked.images)


def _refusal(error: BaseException) -> BaseException:
    """What a client is told of an error of `ServingEngine.submit`; `error` itself where that is a fault."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, Unavailable):
        return ApiError(503, str(error), code="unavailable", retry_after=5.0)
    if isinstance(error, ValueError):
        image = _IMAGE_FIELD.search(str(error))
        return ApiError(400, str(error), param=image and image[0], code="invalid_value")
    return error


Whole = Callable[[Asked, answers.Events], Awaitable[dict]]
Pieces = Callable[[Asked, answers.Events], AsyncGenerator[dict, None]]


class Answer:
    """The response to `asked`, whose requests the engine has: `make` makes one JSON object of their events,
    or where a stream is asked for, a server-sent event of each. When the client goes, they are cancelled.
    `held` is closed at the end."""

    def __init__(
        self,
        metrics: Metrics,
        asked: Asked,
        handles: Sequence[Handle],
        make: Whole | Pieces,
        held: contextlib.ExitStack,
    ):
        self._metrics, self._asked, self._handles = metrics, asked, handles
        self._make, self._held = make, held

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
            self._held.close()
        if finished:
            work.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events()) as events:
            made: Any = self._make(self._asked, events)
            if self._asked.stream:
                async with contextlib.aclosing(made):
                    await _send_events(made, send)
                return
            try:
                response = json_response(await made)
            except ApiError as error:
                response = error_response(error)
            await response(scope, receive, send)

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
                    self._metrics.first_token.labels(kind).observe(time.monotonic() - start)
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
