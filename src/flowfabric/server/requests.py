"""Reading requests: the few headers that matter, the bounded body, who is asking."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from flowfabric.contract.errors import (
    HeadersTooLarge,
    InvalidInput,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedContentType,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS_MAX: Final = 64
HEADER_BYTES_MAX: Final = 16 * 1024
TOKEN_BYTES_MAX: Final = 4 * 1024
QUERY_BYTES_MAX: Final = 8 * 1024
QUERY_FIELDS_MAX: Final = 64

_READ: Final = frozenset(
    (
        b"content-length",
        b"content-type",
        b"authorization",
        b"accept",
        b"last-event-id",
        b"x-request-id",
        b"origin",
        b"host",
        b"traceparent",
        b"access-control-request-method",
    )
)
_PROCESS: Final = uuid.uuid4().hex[:16].encode("ascii")
_COUNTER: Final = itertools.count(1)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")


class ClientGone(Exception):
    """The client went away before its request was complete."""


class Headers:
    """The headers that the server reads."""

    __slots__ = ("_are_too_many", "_values")

    def __init__(self, scope: Scope) -> None:
        raw: Sequence[tuple[bytes, bytes]] = scope["headers"]
        values: dict[bytes, bytes] = {}
        size = 0
        for name, value in raw:
            size += len(name) + len(value)
            if name in _READ:
                values[name] = value
        self._values = values
        self._are_too_many = len(raw) > HEADERS_MAX or size > HEADER_BYTES_MAX

    def check(self) -> None:
        """Refuse headers that are too many or too large."""
        if self._are_too_many:
            raise HeadersTooLarge(f"at most {HEADERS_MAX} headers and {HEADER_BYTES_MAX} bytes of them")

    def get(self, name: bytes) -> bytes:
        """Return a header's value; empty when it is absent."""
        return self._values.get(name, b"")

    def request_id(self) -> bytes:
        """Return the caller's request id if it is well-formed, else a new one."""
        given = self._values.get(b"x-request-id")
        if given and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b%012x" % (_PROCESS, next(_COUNTER))


class Guard:
    """Decides who is let in.

    With tokens: whoever sends one that is live, compared by digest and in constant time. Without: whoever can connect,
    but not a web page of elsewhere in this machine's browser, be it by a name of its own that leads here.
    """

    def __init__(self, tokens: Sequence[str], origins: Sequence[str] = (), host: str = "") -> None:
        self._digests = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)
        self._origins = frozenset(origin.encode() for origin in origins)
        self._host = host.lower()

    @property
    def is_on(self) -> bool:
        """Say whether any token is needed at all."""
        return bool(self._digests)

    def check(self, headers: Headers) -> None:
        """Refuse a request that is not let in."""
        if not self._digests:
            self._check_page(headers.get(b"host"), headers.get(b"origin"))
            return
        value = headers.get(b"authorization")
        scheme, _, token = value.partition(b" ")
        if scheme.lower() != b"bearer" or not token or len(token) > TOKEN_BYTES_MAX:
            raise Unauthorized
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, live) for live in self._digests]
        if not any(matches):
            raise Unauthorized

    def _check_page(self, host: bytes, origin: bytes) -> None:
        if host and not _is_ours(host.lower(), self._host):
            raise Unauthorized(
                "this server has no token and is called by a name that anybody may have pointed here: "
                "call it as 127.0.0.1 or localhost, or set FF_API_TOKEN"
            )
        if origin and not self._origins.intersection((origin, b"*")) and origin.partition(b"://")[2] != host:
            raise Unauthorized(
                "this server has no token and takes no calls from pages of other origins: "
                "name the origin in FF_CORS_ORIGINS, or set FF_API_TOKEN"
            )


@lru_cache(maxsize=256)
def _is_ours(host: bytes, configured: str) -> bool:
    """Say whether a Host header holds an address or a name that no stranger can point at this machine."""
    name = host.decode("latin-1")
    if name.startswith("["):
        return True
    name = name.partition(":")[0].removesuffix(".")
    if "." not in name or name.endswith(".localhost") or name == configured:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def query_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the query's fields in order."""
    raw: bytes = scope["query_string"]
    if not raw:
        return []
    if len(raw) > QUERY_BYTES_MAX:
        raise InvalidInput(f"the query is at most {QUERY_BYTES_MAX} bytes")
    try:
        return parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidInput("the query is not well-formed") from error


async def body_of(headers: Headers, receive: Receive, body_max: int, path: str) -> bytes:
    """Read the body, refusing one that says or turns out to be larger than `body_max`.

    Raises: `PayloadTooLarge`, `UnsupportedContentType`, `InvalidInput`, `ClientGone`.
    """
    declared = headers.get(b"content-length")
    if declared:
        if _LENGTH.fullmatch(declared) is None:
            raise InvalidInput("content-length is not a number")
        if int(declared) > body_max:
            raise PayloadTooLarge(limit_bytes=body_max, route=path)
    message = await receive()
    body: bytes = message.get("body", b"")
    parts = [body]
    size = len(body)
    while message["type"] != "http.disconnect" and size <= body_max and message.get("more_body"):
        message = await receive()
        part: bytes = message.get("body", b"")
        parts.append(part)
        size += len(part)
    if message["type"] == "http.disconnect":
        raise ClientGone
    if size > body_max:
        raise PayloadTooLarge(limit_bytes=body_max, route=path)
    if len(parts) > 1:
        body = b"".join(parts)
    # A page of another origin may send a body without a type, or as text, unasked; never as JSON.
    if body:
        kind = headers.get(b"content-type")
        if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
            raise UnsupportedContentType
    return body
