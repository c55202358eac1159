"""Images that are fetched: only from allowed hosts, within limits."""

import contextlib
import http.server
import threading
import time

import pytest

from tests.serve.test_protocol import png, reader
from unitoken_jax.serve import images
from unitoken_jax.serve.fields import ApiError


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        size = {"/big": 3000, "/lies": 10_000}.get(self.path, len(png()))
        self.send_response(302 if self.path == "/moved" else 404 if self.path == "/none" else 200)
        self.send_header("location", "/image.png")
        self.send_header("content-length", str(size))
        self.end_headers()
        if self.path == "/slow":
            for byte in png():
                with contextlib.suppress(OSError):
                    self.wfile.write(bytes([byte]))
                time.sleep(0.02)
        else:
            with contextlib.suppress(OSError):
                self.wfile.write((png() if self.path != "/lies" else b"") + bytes(max(0, size - len(png()))))

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_of_an_allowed_host_is_read(host):
    file = reader(hosts=[host]).read_url(f"http://{host}/image.png?size=1", "image[0]")
    assert file.path.data == png()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/moved", "redirects are not followed"),
        ("/none", "status 404"),
        ("/big", "longer than 2000 bytes"),
        ("/slow", "longer"),
        ("/a\r\nX: y", "cannot be read|no URL"),
    ],
)
def test_what_such_a_host_may_not_do(host, path, message, monkeypatch):
    if path == "/slow":
        monkeypatch.setattr(images, "FETCH_SECONDS", 0.2)
        message = r"took longer|timed out"
    with pytest.raises(ApiError, match=message):
        reader(hosts=[host], max_bytes=2000).read_url(f"http://{host}{path}", "image[0]")


@pytest.mark.parametrize(
    "url",
    [
        "http://{host}.evil.test/a",
        "http://evil.test/{host}",
        "http://evil.test#{host}",
        "http://{host}@evil.test/a",
        "http://user:word@{host}/a",
        "http://127.0.0.1/a",
        "http://127.0.0.1:1/a",
        "http://localhost:{port}/a",
        "http://[::1",
        "http:///a",
        "ftp://{host}/a",
        "file://{host}/etc/passwd",
        "gs://bucket/a",
    ],
)
def test_other_hosts_are_never_asked(host, url):
    with pytest.raises(ApiError, match=r"may not read|expected a data URL|no URL"):
        reader(hosts=[host]).read_url(url.format(host=host, port=host.partition(":")[2]), "image[0]")
