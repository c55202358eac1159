"""Who may ask, and how much: settings of the HTTP server, and what they refuse."""

import dataclasses
import hmac
import urllib.parse
from collections.abc import Iterable, Sequence

from unitoken_jax.serve.fields import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class HttpLimits:
    """Limits of the HTTP server; those of the engine are `requests.EngineLimits`.

    Attributes:
      body_bytes: of a request. bodies_bytes: of all that are being read or answered at one time.
      pixels: of a request's images together.
      hosts: that images may be fetched from ("example.org", "example.org:8080").
      keys: one of which a request must bring, if there are any.
      names: host names that requests may be addressed to; none: any.
      connections: at one time; one more is closed at once.
      header_seconds, body_seconds: until a request's headers, and its body, must have come.
      write_seconds: that a client may take to read what its connection holds.
    """

    body_bytes: int = 20 << 20
    bodies_bytes: int = 320 << 20
    pixels: int = 16_000_000
    hosts: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    names: tuple[str, ...] = LOOPBACK
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0


def read_keys(text: str, source: str) -> tuple[str, ...]:
    """The keys of an --api-key-file, one a line; lines that begin with # say nothing. Raises ValueError."""
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ValueError(f"{source} holds no key: write one a line, for example of `openssl rand -hex 32`")
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(f"{source}, key {number}: expected printable ASCII without spaces")
    return tuple(keys)


def check_addressed(names: Sequence[str], host: str, origin: str | None) -> None:
    """Raises ApiError for a request that a page of another site made in a user's browser.

    `host` and `origin` are the headers: a browser's page of another site has that site as its origin, and one
    whose name was made to lead here (DNS rebinding) asks for that name.
    """
    if names and _name_of("//" + host) not in names:
        raise ApiError(403, f"the host {host:.100} is not served here", code="wrong_host")
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, "pages of other sites may not ask here", code="wrong_origin")


def _name_of(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_key(keys: Iterable[str], authorization: str | None) -> None:
    """Raises ApiError where there are `keys`, and the header `authorization`, "Bearer KEY", has none."""
    keys = list(keys)
    given = (authorization or "").removeprefix("Bearer ").strip().encode()
    # Every key is compared, each in constant time, so that the time tells nothing.
    matches = [hmac.compare_digest(given, key.encode()) for key in keys]
    if keys and not any(matches):
        raise ApiError(
            401,
            "this server wants a key: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
        )
