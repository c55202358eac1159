"""Handles: events in order, to threads and to asyncio; the stand-in engine keeps the engine's surface."""

import asyncio
import threading

import numpy as np
import pytest
from PIL import Image

from tests.helpers.stand_in_engine import StandInEngine
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.serve.requests import (
    EngineLimits,
    Finished,
    Handle,
    ImageFinished,
    ImageRequest,
    ImageRows,
    QueueFull,
    ServingEngine,
    TextDelta,
    TextRequest,
    Unavailable,
)

QUESTION = TextRequest(make_conversation([["what is this ?"]]))
EVENTS = [TextDelta("a "), TextDelta("b"), Finished("stop", 3, 2)]


@pytest.mark.parametrize("first", [True, False], ids=["all before", "one by one"])
def test_a_handle_gives_its_events_in_order_to_a_thread_and_to_asyncio(first):
    def filled() -> Handle:
        handle = Handle(QUESTION)

        def fill() -> None:
            for event in [*EVENTS, TextDelta("after the end")]:
                handle.put(event)

        thread = threading.Thread(target=fill)
        thread.start()
        if first:
            thread.join()
        return handle

    async def read() -> list:
        return [event async for event in filled()]

    assert list(filled()) == EVENTS
    assert asyncio.run(read()) == EVENTS


def test_asyncio_waits_for_an_event_without_holding_up_its_loop():
    async def read() -> list:
        handle = Handle(QUESTION)
        reader = asyncio.ensure_future(anext(aiter(handle)))
        await asyncio.sleep(0.01)
        assert not reader.done()
        handle.put(EVENTS[0])
        return [await reader]

    assert asyncio.run(read()) == EVENTS[:1]


def test_of_rows_that_nobody_has_read_only_the_latest_are_kept():
    handle = Handle(ImageRequest("a"))
    image = Image.new("RGB", (4, 4))
    whole = ImageFinished(image, np.zeros((1, 1), np.int32))
    for event in (ImageRows(image, 1, 2), ImageRows(image, 2, 2), whole, EVENTS[-1]):
        handle.put(event)
    rows, *rest = handle
    assert rows.rows == 2
    assert rest == [whole, EVENTS[-1]]


def test_limits_must_be_possible():
    with pytest.raises(ValueError, match="text_rows is 0; expected 1 or more"):
        EngineLimits(text_rows=0)


def test_the_stand_in_engine_answers_draws_cancels_and_is_full():
    engine: ServingEngine = StandInEngine(EngineLimits(queue=1))
    with pytest.raises(Unavailable):
        engine.submit(QUESTION)
    engine.start(lambda done, total, what: None)
    events = list(engine.submit(QUESTION))
    assert "".join(event.text for event in events[:-1]) == "seed 0 index 0: what is this ?"
    drawn = list(engine.submit(ImageRequest("a ring", partial=True)))
    assert [type(event) for event in drawn][-3:] == [ImageRows, ImageFinished, Finished]
    engine.hold.clear()
    handle = engine.submit(QUESTION)
    with pytest.raises(QueueFull):
        engine.submit(QUESTION)
    handle.cancel()
    assert list(handle)[-1].reason == "cancelled"
    assert engine.drain(5)
    assert engine.stats().refused == 1
