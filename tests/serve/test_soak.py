"""Many requests, some broken off and some bad, through a real server: the others are right, nothing stays."""

import asyncio
import gc
import json
import pathlib
import random
import resource

import pytest

from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import running
from tests.serve.test_server import post, until
from unitoken_jax.serve.requests import EngineLimits

pytestmark = pytest.mark.slow  # a thousand requests
REQUESTS, CLIENTS = 1000, 32
WORDS = " ".join(["word"] * 30)
CHAT = {"model": "stand-in", "messages": [{"role": "user", "content": WORDS}]}
DRAW = {"prompt": "a red circle", "stream": True, "partial_images": 2}


async def client(host: str, port: int, number: int, rng: random.Random) -> None:
    """One request: a third are broken off somewhere, a tenth are bad."""
    chat = number % 3 > 0
    body = CHAT | {"stream": rng.random() < 0.5} if chat else DRAW
    path = "/v1/chat/completions" if chat else "/v1/images/generations"
    bad, broken = rng.random() < 0.1, rng.random() < 1 / 3
    sent = post(path, body | {"seed": -1 if bad else number}).replace(b"host:", b"connection: close\r\nhost:")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if broken and rng.random() < 0.5:
            writer.write(sent[: rng.randrange(1, len(sent))])
            await writer.drain()
            await asyncio.sleep(rng.random() * 0.05)
            return
        writer.write(sent)
        if broken:
            await reader.read(rng.randrange(1, 400))
            return
        answer = (await reader.read()).decode()
        if bad:
            assert answer.startswith("HTTP/1.1 400")
        elif not chat:
            assert "event: image_generation.completed" in answer
        elif body["stream"]:
            pieces = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
            text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
            assert text == f"seed {number} index 0: {WORDS}"
        else:
            assert f"seed {number} index 0: {WORDS}" in answer
    finally:
        writer.close()


def resident_bytes() -> int:
    """This process's memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def clients(address: str, rng: random.Random, count: int) -> None:
    host, port = address.removeprefix("http://").split(":")
    room = asyncio.Semaphore(CLIENTS)

    async def one(number: int) -> None:
        async with room:
            await client(host, int(port), number, rng)

    await asyncio.gather(*(one(number) for number in range(count)))


def test_a_thousand_requests_leave_nothing():
    rng = random.Random(0)
    engine = StandInEngine(EngineLimits(queue=CLIENTS * 2), delay=0.01)
    with running(engine) as (_, address):
        memory = []
        for _ in range(3):
            asyncio.run(clients(address, rng, REQUESTS // 3))
            until(lambda: not engine._running)
            engine.requests.clear()
            gc.collect()
            memory.append(resident_bytes())
    stats = engine.stats()
    assert stats.taken == stats.finished + stats.cancelled
    assert stats.cancelled > 50
    assert memory[2] < 1.02 * memory[1]
