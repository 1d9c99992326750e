"""Answers: status, headers and body, sent in one go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.contract import wire
from flowfabric.contract.errors import (
    FlowFabricError,
    HeadersTooLarge,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
)
from flowfabric.server.exchange import WHOLE
from flowfabric.server.requests import Scope, Send

JSON: Final = (b"content-type", b"application/json")
NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSING: Final = (PayloadTooLarge, HeadersTooLarge, RequestTimeout)


class Answer(msgspec.Struct, frozen=True):
    """One complete answer."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


def of_error(error: FlowFabricError) -> Answer:
    """Return the answer that reports an error."""
    headers: list[tuple[bytes, bytes]] = [JSON, NO_STORE]
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        allow: Any = error.details.get("allow", [])
        headers.append((b"allow", ", ".join(allow).encode("ascii")))
    retry_after: Any = error.details.get("retry_after_ms")
    if retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(retry_after / 1_000)).encode("ascii")))
    if isinstance(error, _CLOSING):
        headers.append((b"connection", b"close"))
    return Answer(error.http_status, wire.encode_error(error), tuple(headers))


async def send_answer(
    scope: Scope,
    send: Send,
    answer: Answer,
    more: Sequence[tuple[bytes, bytes]],
    *,
    head: bool = False,
) -> None:
    """Send an answer with further, well-formed headers; for HEAD without its body."""
    no_body = answer.status == 204
    own = tuple(pair for pair in answer.headers if pair is not JSON) if no_body else answer.headers
    extensions = scope.get("extensions")
    whole = extensions.get(WHOLE) if extensions is not None else None
    if whole is not None:
        trusted = b"".join([b"%b: %b\r\n" % pair for pair in more])
        await whole(answer.status, own, trusted, answer.body, head=head)
        return
    headers = [*own, *more]
    if not no_body:
        headers.append((b"content-length", str(len(answer.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
