"""The engine with a tiny model: under load it writes what the command line does, and compiles nothing."""

import logging
import random
import threading

import jax
import numpy as np
import pytest

from tests.helpers import compiles
from tests.helpers.tiny_model import WORDS, noise, tiny_model
from unitoken_jax import UniToken
from unitoken_jax.generate import image
from unitoken_jax.sequence.conversation import make_conversation
from unitoken_jax.serve import pool
from unitoken_jax.serve.engine import Engine
from unitoken_jax.serve.requests import (
    EngineLimits,
    Failed,
    Finished,
    ImageFinished,
    ImageRequest,
    ImageRows,
    ImageSettings,
    QueueFull,
    TextDelta,
    TextRequest,
    Unavailable,
)

LIMITS = EngineLimits(
    text_rows=4, image_rows=2, prompt_tokens=192, answer_tokens=32, crops=4, queue=40, quantum=4
)


@pytest.fixture(scope="module")
def engine():
    """An engine that is started, with windows of 64 tokens; `ids` has what each task wrote, by its stream."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "LONG", 64)
        # Bound to a device, as parameters are that were read from a file.
        params = jax.device_put(tiny_model().params, jax.devices()[0])
        engine = Engine(UniToken(tiny_model().config, params, tiny_model().tokenizer), LIMITS)
    seen: list[tuple[int, int, str]] = []
    engine.start(lambda *progress: seen.append(progress))
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert seen[-1] == (len(seen) - 1, len(seen) - 1, "ready")
    engine.ids = {}
    add = engine._scheduler.add

    def recording(name, task):
        told = task.on_tokens

        def on_tokens(tokens, done):
            if done:
                seed, _, _, guidance, _ = task.request.sampling
                engine.ids[name, task.request.stream, seed, guidance] = tokens.tolist()
            told(tokens, done)

        task.on_tokens = on_tokens
        add(name, task)

    engine._scheduler.add = recording
    yield engine
    engine.close()


def question(number: int) -> list:
    """A question like no other: some with images, every fifth one of more than a window's tokens."""
    words = random.Random(number)
    text = " ".join(words.choice(WORDS.split()) for _ in range(100 if number % 5 == 0 else 8))
    return [noise(number), text] if number % 3 == 0 else [text]


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def image_of(events) -> ImageFinished:
    (found,) = (event for event in events if isinstance(event, ImageFinished))
    return found


def collect(handles) -> list[list]:
    """All events of each handle."""
    return [list(handle) for handle in handles]


def check(engine, greedy: range, sampled: range, guidances: tuple) -> None:
    """Asks for everything at one time, in any order, and for the same offline; both must agree."""
    model = tiny_model()
    settings = {"temperature": 0.8, "top_k": 50, "max_tokens": 20, "seed": 9}
    groups = [
        ([TextRequest(make_conversation([question(i)]), **chosen) for i in numbers], chosen)
        for numbers, chosen in ((greedy, {}), (sampled, settings))
    ]
    drawn = [
        ImageRequest(f"a {word} circle", seed=7, index=i % 2, settings=ImageSettings(guidance, 5))
        for i, (word, guidance) in enumerate(zip(("red", "blue", "green", "red"), guidances))
    ]
    requests = [*groups[0][0], *groups[1][0], *drawn]
    random.Random(0).shuffle(requests)
    with compiles.counted() as compiled:
        events = dict(zip(requests, collect([engine.submit(request) for request in requests])))
    assert not compiled, "a request compiled something"

    for group, chosen in groups:
        expected = model.text_results([request.conversation for request in group], **chosen)
        for request, one in zip(group, expected):
            assert text_of(events[request]) == one.text
            assert events[request][-1].reason == ("stop" if one.complete else "length")
            assert events[request][-1].completion_tokens == len(one.tokens) + one.complete
    grammar = image.grammar_of(model, None)
    for request in drawn:
        chosen = {"guidance": request.settings.guidance, "top_k": 5, "seed": request.seed}
        one = model.image_results([request.prompt], number=2, **chosen)[request.index]
        finished = image_of(events[request])
        tokens = grammar.tokens(grammar.code_ids[finished.codes].reshape(1, -1))[0]
        assert tokens.tolist() == one.tokens[1:].tolist()
        np.testing.assert_array_equal(np.asarray(finished.image), np.asarray(one.image))
        assert events[request][-1].reason == "stop"


def test_under_load_answers_and_images_are_the_command_lines(engine):
    check(engine, range(1, 5), range(0), (3.0, 5.0, 3.0))


@pytest.mark.slow
def test_under_load_everything_is_the_command_lines(engine):
    """Slow, since the offline calls compile programs for each length and setting."""
    check(engine, range(10), range(10, 16), (3.0, 1.0, 5.0, 3.0))


def test_the_same_request_writes_the_same_ids_alone_and_among_others(engine):
    request = TextRequest(make_conversation([question(3)]), temperature=1.0, seed=5)
    engine.ids.clear()
    list(engine.submit(request))
    ((key, alone),) = engine.ids.items()
    others = [TextRequest(make_conversation([question(i)]), temperature=2.0, seed=i) for i in range(8)]
    with compiles.counted() as compiled:
        collect([engine.submit(one) for one in [*others[:4], request, *others[4:]]])
    assert not compiled, "a request compiled something"
    assert engine.ids[key] == alone


def test_answers_with_images_are_chats(engine):
    conversation = make_conversation([[noise(1), "what is this ?"]])
    model = tiny_model()
    (expected,) = model.chat([conversation], draws=True, seed=4, max_images=2)
    request = TextRequest(conversation, seed=4, max_images=2, draws=True)
    with compiles.counted() as compiled:
        (events,) = collect([engine.submit(request)])
    assert not compiled
    assert text_of(events) == expected.text
    images = [event.codes.tolist() for event in events if isinstance(event, ImageFinished)]
    assert images == [part.codes.tolist() for part in expected.parts if not isinstance(part, str)]
    assert images
    (edited,) = collect([engine.submit(ImageRequest(conversation, seed=4))])
    assert image_of(edited).codes.tolist() == images[0]


def test_rows_of_an_image_come_as_they_are_written(engine):
    (events,) = collect([engine.submit(ImageRequest("a red circle", partial=True))])
    rows = [event for event in events if isinstance(event, ImageRows)]
    whole = np.asarray(image_of(events).image)
    assert rows
    assert [one.rows for one in rows] == sorted({one.rows for one in rows})
    for one in rows:
        assert (one.total_rows, one.image.height) == (4, 4 * one.rows)
        assert one.image.width == whole.shape[1]


@pytest.mark.parametrize("cut", [1, 3])
def test_a_stop_text_ends_the_answer_before_it(engine, cut):
    conversation = make_conversation([question(1)])
    (whole,) = collect([engine.submit(TextRequest(conversation, max_tokens=32))])
    text = text_of(whole)
    stop = text[len(text) // 2 : len(text) // 2 + cut]
    (events,) = collect([engine.submit(TextRequest(conversation, stop=(stop, "never"), max_tokens=32))])
    assert text_of(events) == text[: text.index(stop)]
    assert events[-1].reason == "stop"


def test_a_cancelled_request_leaves_its_row_and_ends(engine):
    handles = [
        engine.submit(TextRequest(make_conversation([question(i)]), temperature=1.0, seed=i, max_tokens=32))
        for i in range(12)
    ]
    for handle in handles[::2]:
        handle.cancel()
    handles[0].cancel()
    events = collect(handles)
    assert {one[-1].reason for one in events[::2]} <= {"cancelled", "stop", "length"}
    assert all(one[-1].reason in ("stop", "length") for one in events[1::2])
    (after,) = collect([engine.submit(TextRequest(make_conversation([question(2)])))])
    assert isinstance(after[-1], Finished)
    stats = engine.stats()
    assert stats.taken == stats.finished + stats.cancelled + stats.failed
    assert stats.pools["text"].occupied == stats.pools["text"].waiting == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TextRequest(make_conversation([["what " * 400]])), "the prompt: .* tokens; expected 192 at most"),
        (TextRequest(make_conversation([["a"]]), max_tokens=33), "max_tokens is 33; expected 32 at most"),
        (TextRequest(make_conversation([["a"]]), temperature=-1.0), "temperature is -1"),
        (TextRequest(make_conversation([["a"]]), seed=-1), "seed"),
        (TextRequest(make_conversation([["a"]]), stop=("",)), "stop text is empty"),
        (TextRequest(make_conversation([["a"]]), draws=True), "max_images is 0; expected 1 or more"),
        (TextRequest(make_conversation([[noise(1), noise(2), "a"]])), "6 crops; expected 4 at most"),
        (ImageRequest(" "), "empty"),
        (ImageRequest("a", settings=ImageSettings(size=(8, 8))), "8x8 px are not drawn here; .* 16x16"),
        (ImageRequest("a", settings=ImageSettings(top_k=0)), "top_k is 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(engine, request_, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)


def test_one_requests_fault_is_its_own(engine, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    conversation = make_conversation([question(1)])
    good, bad = TextRequest(conversation), TextRequest(conversation, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("unitoken_jax.serve.jobs.TextJob._decode", _fault_of_seed_1)
        events = collect([engine.submit(bad), engine.submit(good)])
    assert isinstance(events[0][-1], Failed)
    assert events[0][-1].kind == "internal"
    assert isinstance(events[1][-1], Finished)


def _fault_of_seed_1(job, tokens) -> str:
    if job.request.seed == 1:
        raise RuntimeError("a fault")
    return job.served.model.tokenizer.decode(tokens)


class StoppedEngine(Engine):
    """An engine whose thread does nothing until it is told to, so that requests wait."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.go = threading.Event()

    def start(self, progress=None) -> None:
        self._started = True
        self._thread.start()

    def _run(self) -> None:
        self.go.wait()
        super()._run()


def test_a_full_queue_a_drain_a_timeout_and_the_end():
    now = [0.0]
    limits = EngineLimits(text_rows=1, image_rows=0, prompt_tokens=64, answer_tokens=8, queue=2, seconds=5)
    engine = StoppedEngine(tiny_model(), limits, clock=lambda: now[0])
    request = TextRequest(make_conversation([["what is this ?"]]))
    with pytest.raises(Unavailable, match="not ready"):
        engine.submit(request)
    assert not engine.ready
    engine.start()
    with pytest.raises(ValueError, match="images are not drawn here"):
        engine.submit(ImageRequest("a"))
    handles = [engine.submit(request) for _ in range(3)]
    with pytest.raises(QueueFull):
        engine.submit(request)
    assert engine.stats().refused == 1
    assert not engine.drain(0.01)
    with pytest.raises(Unavailable, match="closing"):
        engine.submit(request)
    now[0] = 6.0
    engine.go.set()
    assert engine.drain(5)
    assert {event.kind for (event,) in collect(handles)} == {"timeout"}
    engine.close()
    assert not engine.ready


def test_closing_ends_what_is_unfinished():
    engine = StoppedEngine(tiny_model(), EngineLimits(text_rows=1, image_rows=0, prompt_tokens=64))
    engine.start()
    handle = engine.submit(TextRequest(make_conversation([["what is this ?"]])))
    engine._closed = True
    engine.go.set()
    engine.close()
    (event,) = handle
    assert event.kind == "closed"


def test_caches_larger_than_memory_are_refused_before_anything_is_taken(monkeypatch):
    monkeypatch.setattr("unitoken_jax.serve.engine.free_bytes", lambda model: 2**20)
    with pytest.raises(ValueError, match=r"text: 16 rows of 2560 tokens, image: 16 rows .*allow fewer rows"):
        Engine(tiny_model()).start()


@pytest.mark.slow
def test_many_users_some_of_whom_go_away_leave_nothing_behind(engine):
    """Slow, since it takes hundreds of requests to meet every order of events."""
    asked = [make_conversation([question(i)]) for i in range(8)]
    kinds = [TextRequest(one, temperature=0.5 * (i % 3), seed=i) for i, one in enumerate(asked)]
    kinds += [ImageRequest(f"a {word} circle", seed=3, partial=True) for word in ("red", "blue", "green")]
    alone = {kind: _outcome(list(engine.submit(kind))) for kind in kinds}
    bad = TextRequest(make_conversation([["what " * 400]]))
    dice, wrong, finished = random.Random(0), [], []
    plan = [(dice.choice(kinds), dice.random(), dice.randrange(6)) for _ in range(400)]

    def user(number: int) -> None:
        for kind, fate, patience in plan[number::8]:
            if fate < 0.1:
                with pytest.raises(ValueError, match="at most"):
                    engine.submit(bad)
                continue
            events = []
            handle = engine.submit(kind)
            for event in handle:
                events.append(event)
                if fate < 0.4 and len(events) > patience:
                    handle.cancel()
            if events[-1].reason != "cancelled":
                finished.append(kind)
                wrong.extend([kind] * (_outcome(events) != alone[kind]))

    with compiles.counted() as compiled:
        users = [threading.Thread(target=user, args=(number,)) for number in range(8)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
    assert not compiled
    assert not wrong
    assert len(finished) > 200
    assert not engine._running
    list(engine.submit(kinds[0]))  # then the rows of what was cancelled last are free
    stats = engine.stats()
    assert all(lane.occupied == lane.waiting == 0 for lane in stats.pools.values())
    assert stats.taken == stats.finished + stats.cancelled + stats.failed


def _outcome(events) -> tuple:
    """What must not depend on the others: text, codes and the end."""
    codes = [event.codes.tolist() for event in events if isinstance(event, ImageFinished)]
    return text_of(events), codes, events[-1]
