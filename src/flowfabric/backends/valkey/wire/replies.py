"""What a server answers, as Python values, and the errors it answers with.

Strings are bytes, maps are dicts, sets are lists, null is None. An error reply is a `ServerError`: a value in a list
of replies like any other, never raised by `execute`, because the caller of several commands needs all their answers.
"""

from __future__ import annotations

from typing import Final

import hiredis

Reply = None | int | float | bool | bytes | list["Reply"] | dict["Reply", "Reply"]


class ServerError(Exception):
    """An error reply. `code` is its first word (`MOVED`, `WRONGTYPE`, `ERR`), `message` the whole text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message: str = message
        self.code: str = message.partition(" ")[0]


Answer = Reply | ServerError
"""What one command gets: its reply, or the error in its place."""

NOTHING: Final = object()
"""What a reader returns when no whole reply has arrived."""


def new_reader() -> hiredis.Reader:
    """Return a parser of RESP3 that gives bytes, `ServerError` values and, without a whole reply, `NOTHING`."""
    return hiredis.Reader(replyError=ServerError, notEnoughData=NOTHING)


def text(reply: Answer) -> str:
    """Return a string reply as text; the empty string for anything that is not a string."""
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
