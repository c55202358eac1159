"""A bucket store for tests: as much of Google Cloud Storage's JSON API as our libraries use, in memory.

`serve()` gives the environment in which gcsfs, google-cloud-storage and tensorstore talk to it. Every bucket
exists; folders do not, as in the real one.
"""

import contextlib
import http.client
import http.server
import itertools
import json
import re
import threading
import urllib.parse

PAGE = 7  # names a page of a listing: few, so that the clients' paging takes part


class Server(http.server.ThreadingHTTPServer):
    """`objects` {(bucket, name): (generation, bytes)}; `log` of "METHOD path" of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.generations, self.lock, self.log = itertools.count(1), threading.Lock(), []
        self.refused = ""

    def handle_error(self, *_):
        pass  # gcsfs asks two things at a time, and hangs up on the one that has become idle

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, google-cloud-storage
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks by gRPC what kind a bucket is
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore
        }

    def names(self, prefix: str = "", bucket: str = "bucket") -> list[str]:
        """The objects there are, sorted."""
        with self.lock:
            return sorted(name for where, name in self.objects if where == bucket and name.startswith(prefix))

    @contextlib.contextmanager
    def refusing(self, pattern: str):
        """Within it, a request for a name in which `pattern` is found is answered with 403."""
        self.refused = pattern
        try:
            yield
        finally:
            self.refused = ""

    def put(self, name: str, data: bytes, bucket: str = "bucket") -> None:
        with self.lock:
            self.objects[bucket, name] = (next(self.generations), data)

    def read(self, name: str, bucket: str = "bucket") -> bytes:
        return self.objects[bucket, name][1]


@contextlib.contextmanager
def serve():
    """A running Server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    server: Server

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, True)  # TCP_NODELAY: head and body are two writes

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        self.server.log.append(f"{self.command} {urllib.parse.unquote(self.path)}")
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?", url.path)
        if not match:
            return self._json({"error": {"code": 501, "message": f"no {self.command} {self.path}"}}, 501)
        kind, bucket, listing, name = (urllib.parse.unquote(part or "") for part in match.groups())
        name = name or query.get("name", "")
        if self.server.refused and re.search(self.server.refused, name):
            return self._error(403)
        with self.server.lock:
            if kind == "/upload":
                return self._upload(bucket, name, query, body)
            if not listing:
                return self._json({"kind": "storage#bucket", "name": bucket, "locationType": "region"})
            if not name:
                return self._json(self._list(bucket, query))
            return self._object(bucket, name, query)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one

    def _object(self, bucket: str, name: str, query: dict) -> None:
        """Reads, describes or deletes an object."""
        found = self.server.objects.get((bucket, name))
        if found is None:
            return self._error(404)
        if self._outdated(found[0], query):
            return self._error(412)
        if query.get("ifGenerationNotMatch") == str(found[0]):
            return self._answer(304)
        if self.command == "DELETE":
            del self.server.objects[bucket, name]
            return self._answer(204)
        if query.get("alt") != "media":
            return self._json(_about(bucket, name, *found))
        generation, data = found
        headers, status, wanted = {"x-goog-generation": str(generation)}, 200, self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                return self._error(416)
            headers["Content-Range"], status = f"bytes {start}-{end - 1}/{len(data)}", 206
            data = data[start:end]
        return self._answer(status, data, headers | {"Content-Type": "application/octet-stream"})

    def _upload(self, bucket: str, name: str, query: dict, body: bytes) -> None:
        """An object as a whole, with its description before it, or in pieces (resumable)."""
        kind = query.get("uploadType")
        if kind == "resumable" and "upload_id" not in query:
            number = str(next(self.server.generations))
            name = name or json.loads(body)["name"]
            self.server.uploads[number] = (bucket, name, query, bytearray())
            at = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self._answer(200, b"", {"Location": at})
        if kind == "resumable":
            bucket, name, query, data = self.server.uploads[query["upload_id"]]
            data += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                return self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            body = bytes(data)
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, body, _ = re.split(rb"(?:^|\r?\n)--" + re.escape(boundary), body)
            about, body = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, body))
            name = name or json.loads(about)["name"]
        if self._outdated(self.server.objects.get((bucket, name), (0,))[0], query):
            return self._error(412)
        self.server.objects[bucket, name] = made = (next(self.server.generations), body)
        return self._json(_about(bucket, name, *made))

    def _list(self, bucket: str, query: dict) -> dict:
        """A page of names, cut at the delimiter."""
        prefix, mark = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, dict | None] = {}
        for (where, name), found in sorted(self.server.objects.items()):
            inside = query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff")
            if where == bucket and name.startswith(prefix) and inside:
                head, cut, _ = name[len(prefix) :].partition(mark) if mark else ("", "", "")
                if cut:
                    entries[prefix + head + cut] = None
                else:
                    entries[name] = _about(bucket, name, *found)
        start, size = int(query.get("pageToken") or 0), min(PAGE, int(query.get("maxResults") or PAGE))
        page = list(entries.items())[start : start + size]
        answer = {"kind": "storage#objects", "items": [about for _, about in page if about]}
        answer["prefixes"] = [name for name, about in page if not about]
        return answer | ({"nextPageToken": str(start + size)} if start + size < len(entries) else {})

    def _outdated(self, generation: int, query: dict) -> bool:
        return query.get("ifGenerationMatch", str(generation)) != str(generation)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _error(self, code: int) -> None:
        self._json({"error": {"code": code, "message": http.client.responses[code]}}, code)

    def _json(self, value: dict, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _about(bucket: str, name: str, generation: int, data: bytes) -> dict:
    """An object's description."""
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "bucket": bucket,
        "name": name,
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(data)),
        "updated": "2025-01-01T00:00:00.000Z",
        "timeCreated": "2025-01-01T00:00:00.000Z",
        "storageClass": "STANDARD",
    }
