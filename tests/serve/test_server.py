"""A server on a port: clients that go, stall or flood, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import connect, info_of, running
from tests.serve.test_protocol import HELLO
from unitoken_jax.serve import server
from unitoken_jax.serve.app import Server
from unitoken_jax.serve.requests import EngineLimits

DRAW = {"prompt": "x", "n": 8, "stream": True, "partial_images": 4}


def post(path: str, body: dict, length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {length or len(data)}\r\n\r\n".encode() + data


def answer(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionError:
        pass
    return received


def ask(address: str, path: str = "/v1/chat/completions", body: dict = HELLO) -> bytes:
    with connect(address) as connection:
        connection.sendall(post(path, body).replace(b"host:", b"connection: close\r\nhost:"))
        return answer(connection)


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_rows(stream):
    with running() as (engine, address):
        engine.hold.clear()
        with connect(address) as connection:
            asked = DRAW | {"stream": stream, "partial_images": 0}
            connection.sendall(post("/v1/images/generations", asked))
            until(lambda: len(engine.requests) == 8)
        until(lambda: engine.stats().cancelled == 8)


def test_clients_that_stall_hold_nobody_up():
    engine = StandInEngine(EngineLimits(queue=500))
    limits = {"header_seconds": 2.5, "body_seconds": 2.5, "connections": 60}
    with running(engine, **limits) as (_, address):
        silent = [connect(address) for _ in range(5)]
        half_headers = [connect(address) for _ in range(5)]
        for connection in half_headers:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: local")
        half_bodies = [connect(address) for _ in range(5)]
        for connection in half_bodies:
            connection.sendall(post("/v1/chat/completions", HELLO, length=10_000))
        start = time.monotonic()
        assert b'"finish_reason": "stop"' in ask(address)
        assert time.monotonic() - start < 2
        for connection in (*silent, *half_headers):
            assert answer(connection) == b""  # closed
            connection.close()
        for connection in half_bodies:
            assert b"408" in answer(connection)[:20]
            connection.close()


def test_a_client_that_does_not_read_is_dropped():
    engine = StandInEngine(EngineLimits(prompt_tokens=1 << 20))
    with running(engine, write_seconds=2.5) as (_, address), connect(address) as connection:
        words = " ".join(["w" * 10_000] * 1500)  # more than sockets hold
        body = HELLO | {"messages": [{"role": "user", "content": words}], "stream": True}
        connection.sendall(post("/v1/chat/completions", body))
        until(lambda: engine.requests)
        start = time.monotonic()
        assert b"200" in ask(address)[:20]
        assert time.monotonic() - start < 2
        until(lambda: engine.stats().finished + engine.stats().cancelled == 2)  # both of them
        time.sleep(2.6)
        assert b"[DONE]" not in answer(connection)


def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    with running() as (engine, address), connect(address) as connection:
        head = post("/v1/chat/completions", {}, length=64 << 20)
        connection.sendall(head.replace(b"host:", b"connection: close\r\nhost:"))

        def send():
            try:
                for _ in range(64):
                    connection.sendall(bytes(1 << 20))
            except OSError:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        assert b"413" in answer(connection)[:20]
        sender.join(20)
        assert not engine.requests
        assert b"200" in ask(address)[:20]


def test_what_an_answer_still_needs_counts():
    with running(bodies_bytes=len(json.dumps(HELLO)) * 3 // 2) as (engine, address):
        engine.hold.clear()
        with connect(address) as connection:
            connection.sendall(post("/v1/chat/completions", HELLO))
            until(lambda: engine.requests)
            assert b"429" in ask(address)[:20]
        until(lambda: b"429" not in ask(address, body=HELLO | {"n": 99})[:20])


def test_connections_have_a_limit_and_are_given_back():
    with running(connections=8, header_seconds=0.5) as (_, address):
        held = [connect(address) for _ in range(30)]
        until(lambda: b"200" in ask(address)[:20])
        for connection in held:
            connection.close()
        for _ in range(300):  # in turn
            with connect(address) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 50)
        until(lambda: b"200" in ask(address)[:20])


def test_nonsense_is_answered():
    with running() as (_, address):
        for nonsense in (
            b"\x16\x03\x01\x02",
            b"GET",
            b"POST / HTTP/1.1\r\ncontent-length: -1",
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1",
        ):
            with connect(address) as connection:
                connection.sendall(nonsense + b"\r\n\r\n")
                assert b" 40" in answer(connection)[:20]
        assert b"200" in ask(address)[:20]


def test_at_its_end_what_was_taken_is_finished():
    received = []
    engine = StandInEngine(delay=0.05)
    with running(engine) as (_, address):
        client = threading.Thread(target=lambda: received.append(ask(address)))
        client.start()
        until(lambda: engine.requests)
    client.join(10)
    assert b"seed 0 index 0: hello" in received[0]
    assert (engine.stats().finished, engine.stats().cancelled) == (1, 0)
    with pytest.raises(ConnectionError):
        connect(address)


CHILD = """
from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import info_of
from unitoken_jax.serve import server
from unitoken_jax.serve.app import Server

engine = StandInEngine(delay=0.3)
listener = server.listen("127.0.0.1", 0)
server.serve(Server(engine, info_of(engine)), listener, lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_ends_the_process_when_all_is_answered(number, code):
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    address = child.stdout.readline().removeprefix("ready: ").rstrip("/\n")
    with connect(address) as connection:
        connection.sendall(post("/v1/chat/completions", HELLO | {"stream": True}))
        received = connection.recv(1000)
        child.send_signal(number)
        received += answer(connection)
    assert child.wait(20) == code
    assert b"hello" in received
    assert b"[DONE]" in received


def test_a_server_can_be_stopped_while_it_compiles():
    engine, listener = StandInEngine(), server.listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def start(progress):
        with connect(address) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            health = answer(connection)
        assert b"503" in health[:20]
        assert b"starting" in health
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            progress(1, 10, "a program")
            time.sleep(0.01)

    engine.start = start
    server.serve(Server(engine, info_of(engine)), listener)
    assert not engine.ready


def test_an_engine_that_cannot_start_ends_the_server():
    engine = StandInEngine()
    engine.start = lambda progress: (_ for _ in ()).throw(ValueError("the cache needs 3 GiB"))
    listener = server.listen("127.0.0.1", 0)
    with pytest.raises(ValueError, match="3 GiB"):
        server.serve(Server(engine, info_of(engine)), listener)


@pytest.mark.parametrize(
    ("host", "option"), [("127.0.0.1", "--port"), ("192.0.2.1", "--host"), ("no.host.invalid", "--host")]
)
def test_an_address_that_cannot_be_is_named(host, option):
    with server.listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match=f"{option} .*cannot listen"):
        server.listen(host, taken.getsockname()[1])


def test_sigterm_is_nothing_to_fear_when_all_is_done():
    with server._stoppable_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
