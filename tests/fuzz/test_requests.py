"""Whatever a client sends: an answer, or an error in OpenAI's form; no fault, and no image mark in a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.fuzz.damage import as_json, damaged_bytes, damaged_tree, odd_texts
from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import info_of
from tests.serve.test_protocol import part, png, says, url
from unitoken_jax.serve.app import Server
from unitoken_jax.serve.limits import HttpLimits
from unitoken_jax.serve.requests import TextRequest

ANSWER = {"role": "assistant", "content": "a red circle", "images": [part(url(png())) | {"offset": 2}]}
QUESTION = says(part(url(png())), {"type": "text", "text": "what is this?"})
CHAT = {
    "model": "stand-in",
    "messages": [QUESTION, ANSWER, {"role": "user", "content": "and now?"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "top_k": 2,
    "seed": 1,
    "n": 2,
    "stop": ["x", "y"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_images": 1,
    "guidance_scale": 2,
}
DRAW = {"prompt": "a red circle", "n": 2, "size": "24x16", "seed": 1, "stream": True, "partial_images": 2}
PATHS = {"/v1/chat/completions": CHAT, "/v1/images/generations": DRAW}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client():
    engine = StandInEngine()
    engine.start()
    app = Server(engine, info_of(engine), HttpLimits(names=("testserver",))).app()
    with TestClient(app, raise_server_exceptions=False) as client:
        client.engine = engine
        yield client


def check(client, response) -> None:
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert len(error["message"]) < 700
        assert error["message"].isprintable()
    for request in client.engine.requests:
        turns = request.conversation.turns if isinstance(request, TextRequest) else ()
        texts = [text for turn in turns for text in turn.parts if isinstance(text, str)]
        assert not any("<image>" in text or "<|image|>" in text for text in texts)
    client.engine.requests.clear()


@pytest.mark.parametrize("path", PATHS)
@given(data=st.data())
def test_any_json(client, path, data):
    tree = data.draw(damaged_tree(PATHS[path]))
    check(client, client.post(path, content=as_json(tree), headers=JSON))


@given(data=st.data())
def test_any_body(client, data):
    body = data.draw(damaged_bytes(as_json(CHAT)))
    check(client, client.post("/v1/chat/completions", content=body, headers=JSON))


@given(data=st.data())
def test_any_form(client, data):
    name = data.draw(st.just("image") | odd_texts.filter(_encodable))
    values = {
        "prompt": "blue",
        data.draw(st.sampled_from(["n", "seed", "prompt", "x"])): data.draw(odd_texts),
    }
    fields = {field: value for field, value in values.items() if _encodable(value)}
    image = ("a.png", data.draw(damaged_bytes(png())))
    check(client, client.post("/v1/images/edits", data=fields, files={name: image}))


@given(data=st.data())
def test_any_form_s_bytes(client, data):
    sent = client.build_request("POST", "/v1/images/edits", data={"prompt": "blue"}, files={"image": png()})
    body = data.draw(damaged_bytes(sent.read()))
    headers = {"content-type": sent.headers["content-type"]}
    check(client, client.post("/v1/images/edits", content=body, headers=headers))


def _encodable(text: str) -> bool:
    return text.isprintable() and text != ""
