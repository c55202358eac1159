"""Listening: the socket, slow and silent clients, signals, and the engine's start and end beside it."""

import asyncio
import contextlib
import datetime
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import h11
import uvicorn
from PIL import Image
from tqdm import tqdm
from uvicorn.protocols.http.h11_impl import H11Protocol

from unitoken_jax.pretrained import model_path
from unitoken_jax.sequence.build import example_size
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.serve.app import Server
from unitoken_jax.serve.protocol import ModelInfo
from unitoken_jax.serve.requests import ServingEngine, Unavailable

if TYPE_CHECKING:
    from unitoken_jax.generate.runtime import Runtime

BACKLOG = 256
KEEP_ALIVE_SECONDS = 5
MIN_PROMPT_TOKENS, TEXT_TOKENS = 2048, 512  # of a prompt; of its text, beside an image


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises OSError naming --host or --port."""
    if not host:
        raise ValueError("--host is empty; expected an address, for example 0.0.0.0 for all of this machine")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError, TypeError) as error:  # the latter: a NUL in the name
        listener.close()
        unusable = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        option = f"--port {port}" if unusable else f"--host {host}"
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"{option}: cannot listen at {host}, port {port} ({reason})") from error
    return listener


def model_name(path: str | os.PathLike) -> str:
    """What users call the model directory or adapter `path`: as its folder is called; the package's own model
    "unitoken-small"."""
    folder = os.path.realpath(path)
    return "unitoken-small" if folder == os.path.realpath(model_path()) else os.path.basename(folder)


def default_prompt_tokens(model: "Runtime") -> int:
    """Tokens of a prompt that a server allows where it is not told: room for the largest image that the
    model can be shown, and for text."""
    side, question = model.config.siglip.image_size, make_conversation([[Image.new("RGB", (1, 1))]])
    sizes = [(rows * side, columns * side) for rows, columns in model.config.sequence.grids]
    tokens = [
        example_size(question, model.tokenizer, model.config, [size]).tokens
        for size in [*sizes, (side, side)]
    ]
    return max(MIN_PROMPT_TOKENS, max(tokens) + TEXT_TOKENS)


def model_info(name: str, model: "Runtime", engine: ServingEngine) -> ModelInfo:
    """What requests know of `model`, which they call `name`."""
    try:
        created = int(datetime.datetime.fromisoformat(model.manifest["created"]).timestamp())
    except (KeyError, TypeError, ValueError):
        created = 0
    return ModelInfo(name, created, engine.image_sizes, model.config.generation.guidance, engine.limits)


def serve(server: Server, listener: socket.socket, announce: Callable[[str], None] = print) -> None:
    """Starts the engine and answers until SIGTERM or Ctrl-C: then nothing new is taken, what was taken is
    finished, and this returns. `announce` is given one line when the server is ready.

    Raises what `ServingEngine.start` raises.
    """
    engine, limits = server.engine, server.limits

    def stop() -> None:
        engine.drain(engine.limits.seconds)
        engine.close()

    config = uvicorn.Config(
        server.app(on_stop=stop),
        http=_protocol_of(server),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="error",  # an invalid request is no news
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(engine.limits.seconds + limits.body_seconds + limits.write_seconds),
    )
    http = uvicorn.Server(config)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with _progress_bar() as show:

                def progress(done: int, total: int, what: str) -> None:
                    server.progress = (done, total)
                    show(done, total, what)
                    if http.should_exit:
                        raise Unavailable("stopped while its programs were compiled")

                engine.start(progress)
            announce(f"ready: http://{_address(listener)}/")
        except Unavailable:  # raised above
            pass
        except Exception as error:
            failures.append(error)
            http.should_exit = True

    starter = threading.Thread(target=start, name="engine-start", daemon=True)
    try:
        with _stoppable_by_sigterm():
            starter.start()
            http.run(sockets=[listener])
    finally:  # after Ctrl-C too, which uvicorn passes on
        engine.close()
        starter.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _stoppable_by_sigterm() -> Iterator[None]:
    """uvicorn sends itself the signal that ended it once more when all is done: SIGTERM then does nothing, so
    that the process ends as one that has done its work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Shows what `ServingEngine.start` tells of its progress."""
    with tqdm(desc="compiling", unit="program", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        yield progress


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _protocol_of(server: Server) -> type[H11Protocol]:
    """uvicorn's protocol, with limits that it has not: on connections, on the time until a request's headers
    have come, and on the time that a client takes to read."""
    limits = server.limits

    class Protocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            self._watch_reading()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_reading()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._reading = _stopped(self._reading)
            self._writing = _stopped(self._writing)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self._writing or self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._writing = _stopped(self._writing)

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # What the client has not read yet keeps the connection open.
            self._writing = self._writing or self.loop.call_later(limits.write_seconds, self.transport.abort)

        def _watch_reading(self) -> None:
            """Gives a request's headers, or the rest of a refused one, a time to come."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._reading = _stopped(self._reading)
            elif self._reading is None:
                refused = self.conn.their_state is h11.SEND_BODY
                seconds = limits.body_seconds if refused else limits.header_seconds
                self._reading = self.loop.call_later(seconds, self.transport.abort)

    return Protocol


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer, after stopping this one."""
    if timer is not None:
        timer.cancel()
    return None
