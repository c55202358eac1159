"""A server with the stand-in engine: in this process for single requests, and on a port for real clients."""

import contextlib
import socket
import threading

import pytest

from tests.helpers.stand_in_engine import StandInEngine
from unitoken_jax.serve.limits import HttpLimits
from unitoken_jax.serve.protocol import ModelInfo
from unitoken_jax.serve.requests import EngineLimits


def info_of(engine, name: str = "stand-in") -> ModelInfo:
    return ModelInfo(name, 0, engine.image_sizes, 3.0, engine.limits)


@contextlib.contextmanager
def running(engine=None, **limits):
    """(engine, "http://127.0.0.1:PORT") of a server that runs in a thread, and is stopped as by SIGTERM."""
    import uvicorn

    from unitoken_jax.serve import server
    from unitoken_jax.serve.app import Server

    engine = engine or StandInEngine()
    stopped: list = []
    ready = threading.Event()
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    made: list[uvicorn.Server] = []

    class Recorded(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            made.append(self)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(uvicorn, "Server", Recorded)
            server.serve(
                Server(engine, info_of(engine), HttpLimits(**limits)), listener, lambda line: ready.set()
            )
        stopped.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        yield engine, f"http://127.0.0.1:{port}"
    finally:
        engine.hold.set()
        made[0].should_exit = True
        thread.join(20)
        assert stopped


@pytest.fixture(scope="module")
def served():
    """(engine, address) of a server that the tests of a module share."""
    with running() as (engine, address):
        yield engine, address


@pytest.fixture
def engine():
    return StandInEngine(EngineLimits(queue=4))


@pytest.fixture
def client(engine):
    """A client in this process; the engine is ready."""
    from starlette.testclient import TestClient

    from unitoken_jax.serve.app import Server

    engine.start()
    app = Server(engine, info_of(engine), HttpLimits(names=("testserver",))).app()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def connect(address: str) -> socket.socket:
    """A bare connection to an address "http://HOST:PORT"."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)
