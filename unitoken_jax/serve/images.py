"""Images in requests and responses: data URLs, uploads, URLs of allowed hosts; PNG.

What a client sends is opened as training opens its images (`sequence.image`), after a look at its header: its
format must be one that browsers show too, and its pixels must be within the server's limit.
"""

import base64
import binascii
import dataclasses
import http.client
import io
import time
import urllib.parse
from collections.abc import Collection

from PIL import Image

from unitoken_jax.sequence.conversation import ImageFile
from unitoken_jax.sequence.image import ImageError, image_size
from unitoken_jax.serve.fields import ApiError, invalid, shown
from unitoken_jax.storage.paths import InMemoryFile

# Pillow reads many more, some by starting other programs (PostScript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FETCH_SECONDS = 10.0  # for an image of an allowed host, its connection and all
_CHUNK = 1 << 16


@dataclasses.dataclass
class ImageReader:
    """Reads the images of one request; `max_pixels` is what all of them may have together.

    `max_bytes`: of a fetched file; `hosts`: ("example.org", "example.org:8080") that images may be fetched
    from.
    """

    max_pixels: int
    max_bytes: int
    hosts: Collection[str] = ()

    def read(self, data: bytes, name: str) -> ImageFile:
        """The encoded image `data`; `name`, its field, is what messages call it. Raises ApiError."""
        file = InMemoryFile(name, data)
        try:
            Image.open(io.BytesIO(data), formats=FORMATS).close()
        except Exception as error:
            expected = ", ".join(FORMATS)
            raise invalid(
                name, f"is not an image that can be opened; expected {expected}", "invalid_image"
            ) from error
        try:
            height, width = image_size(file)
        except ImageError as error:
            raise ApiError(400, str(error), param=name, code="invalid_image") from error
        if height * width > self.max_pixels:
            raise invalid(
                name,
                f"has {width} x {height} px, and the images of this request may have {self.max_pixels} more: "
                "make it smaller",
                "image_too_large",
            )
        self.max_pixels -= height * width
        return ImageFile(name, file)

    def read_url(self, url: str, name: str) -> ImageFile:
        """The image at `url`, a data URL or one of an allowed host. Raises ApiError."""
        scheme = url[:20].partition(":")[0].lower()
        if scheme == "data":
            return self.read(_data_of(url, name), name)
        if scheme in ("http", "https"):
            return self.read(self._fetch(url, name), name)
        raise invalid(
            name,
            f"is {shown(url)}; expected a data URL (data:image/png;base64,...), or https of an allowed host",
        )

    def _fetch(self, url: str, name: str) -> bytes:
        """The file at an http or https `url`, whose host must be allowed; redirects are not followed."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise invalid(name, f"is no URL ({error})") from error
        allowed = host if port is None else f"{host}:{port}"
        if allowed not in self.hosts or parts.username is not None or parts.password is not None:
            raise invalid(
                name,
                f"names the host {shown(allowed)}, which this server may not read from (--allow-host): send "
                "the image as a data URL",
                "host_not_allowed",
            )
        connect = (
            http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
        )
        connection = connect(host, port, timeout=FETCH_SECONDS)
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        try:
            connection.request("GET", target, headers={"User-Agent": "unitoken", "Accept": "image/*"})
            return _body_of(connection.getresponse(), self.max_bytes)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise invalid(name, f"cannot be read from {host} ({reason})", "image_not_fetched") from error
        finally:
            connection.close()


def _body_of(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """The body of a response. ValueError where it is no success, longer than `max_bytes`, or too slow."""
    if response.status != 200:
        raise ValueError(f"status {response.status}; redirects are not followed")
    deadline = time.monotonic() + FETCH_SECONDS
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"longer than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise ValueError(f"took longer than {FETCH_SECONDS:.0f} s")
    return bytes(body)


def _data_of(url: str, name: str) -> bytes:
    """The bytes that a data URL holds."""
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise invalid(name, f"is {shown(url[:60])}; expected data:image/png;base64,...", "invalid_image")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, f"holds no base64 ({error})", "invalid_image") from error


def png(image: Image.Image) -> bytes:
    """`image` as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_base64(image: Image.Image) -> str:
    """`image` as a PNG file in base64."""
    return base64.b64encode(png(image)).decode("ascii")


def data_url(image: Image.Image) -> str:
    """`image` as the data URL of a PNG file."""
    return "data:image/png;base64," + png_base64(image)
