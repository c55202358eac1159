"""Endpoints, limits and headers, asked in this process."""

import json

import pytest

from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import info_of
from tests.serve.test_protocol import HELLO, png
from unitoken_jax.serve.limits import HttpLimits, check_addressed, read_keys
from unitoken_jax.serve.requests import EngineLimits, Failed

AS_JSON = {"content-type": "application/json"}
AS_FORM = {"content-type": "multipart/form-data; boundary=b"}
CHAT, DRAW, EDIT = "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"


def client_of(engine, **limits):
    from starlette.testclient import TestClient

    from unitoken_jax.serve.app import Server

    server = Server(engine, info_of(engine), HttpLimits(**{"names": ("testserver",)} | limits))
    return TestClient(server.app(), raise_server_exceptions=False)


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_health_says_when_the_engine_is_ready(engine):
    from starlette.testclient import TestClient

    from unitoken_jax.serve.app import Server

    server = Server(engine, info_of(engine), HttpLimits(names=("testserver",)))
    with TestClient(server.app()) as client:
        assert client.get("/health").json() == {"status": "starting", "programs": 0, "compiled": 0}
        error = error_of(client.post(CHAT, json=HELLO), 503)
        assert "not ready" in error["message"]
        engine.start(lambda done, total, what: setattr(server, "progress", (done, total)))
        response = client.get("/health")
        assert (response.status_code, response.json()["status"]) == (200, "ready")
        engine.drain()
        response = client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "stopping")


def test_metrics_count_what_was_asked(client):
    client.post(CHAT, json=HELLO)
    client.post(CHAT, json={})
    client.get("/etc/passwd")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'unitoken_http_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'unitoken_http_requests_total{path="/v1/chat/completions",status="400"} 1.0',
        'unitoken_http_requests_total{path="other",status="404"} 1.0',
        'unitoken_first_token_seconds_count{kind="text"} 1.0',
        'unitoken_pool_rows{pool="text"} 16.0',
        'unitoken_pool_cache_bytes{pool="image"} 1.048576e+06',
        'unitoken_requests_total{outcome="finished"} 1.0',
        "unitoken_ready 1.0",
    ):
        assert line in lines


def test_a_full_queue_says_when_to_come_again(client, engine):
    engine.hold.clear()
    response = client.post(DRAW, json={"prompt": "x", "n": 5})
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert response.headers["retry-after"] == "1"
    engine.hold.set()
    assert engine.drain(5)  # the four that fitted were cancelled
    assert engine.stats().cancelled == 4


@pytest.mark.parametrize(("kind", "status"), [("timeout", 504), ("closed", 503), ("internal", 500)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_later_is_an_error(client, engine, kind, status, stream):
    engine.fault = Failed(kind, "it took too long")
    for path, body in ((CHAT, HELLO), (DRAW, {"prompt": "a b"})):
        response = client.post(path, json=body | {"stream": stream})
        if stream:
            last = [line for line in response.text.splitlines() if line.startswith("data: ")][-1]
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            error = error_of(response, status)
        assert (error["message"], error["code"]) == ("it took too long", kind)


def test_what_the_engine_refuses_is_the_request_s_fault(client, engine, monkeypatch):
    name = "messages[0].content[1].image_url.url"
    for message, param in (
        ("the question: too many tokens", None),
        (f"the question: {name} is damaged", name),
    ):
        monkeypatch.setattr(engine, "submit", lambda request, message=message: _refuse(message))
        error = error_of(client.post(CHAT, json=HELLO), 400)
        assert (error["message"], error["param"]) == (message, param)


def _refuse(message):
    raise ValueError(message)


def _asking(text):
    return HELLO | {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("path", "arguments", "status", "code"),
    [
        (CHAT, {"content": b"{", "headers": AS_JSON}, 400, "invalid_json"),
        (CHAT, {"content": b"\xff", "headers": AS_JSON}, 400, "invalid_json"),
        (CHAT, {"content": b"[" * 99_999, "headers": AS_JSON}, 400, "invalid_json"),
        (CHAT, {"json": [HELLO]}, 400, "invalid_json"),
        (CHAT, {"content": json.dumps(HELLO)}, 415, "unsupported_media_type"),
        (CHAT, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        (EDIT, {"json": {}}, 415, "unsupported_media_type"),
        (EDIT, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_form"),
        (EDIT, {"content": b"x", "headers": AS_FORM}, 400, "invalid_form"),
        (EDIT, {"data": {"prompt": "x"}, "files": [("image", b"")]}, 400, "invalid_image"),
        (EDIT, {"data": {"prompt": "x"}, "files": [("image", png())] * 17}, 400, "invalid_form"),
        (EDIT, {"data": {f"f{i}": "x" for i in range(33)}, "files": [("image", b"")]}, 400, "invalid_form"),
        (EDIT, {"data": {"prompt": ["x", "y"]}, "files": [("image", png())]}, 400, "invalid_value"),
        (CHAT, {"json": HELLO, "headers": {"host": "evil.test"}}, 403, "wrong_host"),
        (CHAT, {"json": HELLO, "headers": {"origin": "http://evil.test"}}, 403, "wrong_origin"),
        (CHAT, {"json": HELLO, "headers": {"origin": "null"}}, 403, "wrong_origin"),
        ("/v1/completions", {"json": {}}, 404, "not_found"),
        ("/health", {"json": {}}, 405, "not_found"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_in_openai_s_form(client, path, arguments, status, code):
    assert error_of(client.post(path, **arguments), status)["code"] == code


def test_a_request_has_a_size(engine):
    engine.start()
    with client_of(engine, body_bytes=1000, bodies_bytes=1500) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200
        big = _asking("x" * 1000)
        assert error_of(client.post(CHAT, json=big), 413)["code"] == "request_too_large"
        pieces = (b" " * 400 for _ in range(5))  # no length is announced
        headers = {"content-type": "application/json"}
        assert error_of(client.post(CHAT, content=pieces, headers=headers), 413)
        for _ in range(3):  # what was refused is given back
            assert client.post(CHAT, json=_asking("x" * 800)).status_code == 200
    with client_of(engine, bodies_bytes=100) as client:
        response = client.post(CHAT, json=_asking("x" * 100))
        assert error_of(response, 429)["code"] == "busy"


def test_only_a_key_opens_the_api(engine):
    engine.start()
    with client_of(engine, keys=("right",)) as client:
        for path in ("/v1/models", "/v1/models/stand-in", "/metrics"):
            response = client.get(path)
            assert error_of(response, 401)["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"authorization": "Bearer right"}).status_code == 200
        error_of(client.post(CHAT, json=HELLO, headers={"authorization": "Bearer wrong"}), 401)
        for path in ("/health", "/", "/openapi.json"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/page/../app.py", "/app.py", "//etc/passwd",
     "/v1/models/..%2f..%2fetc", "/page", "/index.html%00"],
)  # fmt: skip
def test_no_path_of_the_machine_can_be_read(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "root:" not in response.text


def test_a_browser_is_told_to_be_careful(client):
    for path in ("/", "/page.js", "/v1/models", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]
    response = client.options(
        CHAT, headers={"origin": "http://evil.test", "access-control-request-method": "POST"}
    )
    assert response.status_code == 403
    assert client.get("/", headers={"origin": "http://testserver"}).status_code == 200
    assert client.get(CHAT).headers["allow"] == "POST"


def test_a_fault_tells_a_client_nothing(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "submit", lambda request: 1 / 0)
    error = error_of(client.post(CHAT, json=HELLO), 500)
    assert error["message"] == "the server failed; its log says why"


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:8000", None, True),
        ("127.0.0.1", "http://127.0.0.1", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("localhost:8000", "http://localhost:8001", False),
        ("localhost.evil.test", None, False),
        ("evil.test", "http://evil.test", False),
        ("[", None, False),
        ("", None, False),
    ],
)
def test_pages_of_other_sites_are_refused(host, origin, allowed):
    from unitoken_jax.serve.fields import ApiError
    from unitoken_jax.serve.limits import LOOPBACK

    try:
        check_addressed(LOOPBACK, host, origin)
    except ApiError:
        assert not allowed
    else:
        assert allowed
    check_addressed((), "any.test", None)


def test_a_file_of_keys_is_read():
    assert read_keys("# ours\n one \n\ntwo\n", "FILE") == ("one", "two")
    for text in ("", "# none\n", "a b\n", "\u00e9\n"):
        with pytest.raises(ValueError, match="FILE"):
            read_keys(text, "FILE")


def test_the_queue_s_limit_is_the_engine_s():
    engine = StandInEngine(EngineLimits(queue=1, answer_tokens=7))
    engine.start()
    with client_of(engine) as client:
        assert client.get("/v1/models").json()["data"][0]["limits"]["max_tokens"] == 7
        assert "1 to 7" in error_of(client.post(CHAT, json=HELLO | {"max_tokens": 8}), 400)["message"]
