"""Following a stream: page after page until nothing more will come.

`follow_by_polling` does it with any stores by long polls. The HTTP client has its own, over Server-Sent Events, with
the same result.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.stream import Frame, FramePage, StreamTail

Follow = Callable[[StreamTail], AsyncGenerator[FramePage]]
"""Yield the pages after a cursor, each with at least one frame or saying `trimmed`; return when the stream is over."""


def cursor_of(frame: Frame, attempt_index: int | None) -> str:
    """Return the cursor that continues after a frame, inside one attempt or over the whole run."""
    return frame.frame_id if attempt_index is not None else f"{frame.attempt_index}:{frame.frame_id}"


async def follow_by_polling(stores: Stores, command: StreamTail) -> AsyncGenerator[FramePage]:
    """Yield the frames after a cursor, page by page, waiting for more until the stream is closed.

    With `wait_ms` 0 it returns at the first empty page instead of waiting.
    """
    after = command.after
    waits = command.wait_ms > 0
    while True:
        wait_ms = limits.WAIT_MAX_MS if waits else 0
        page = await stores.stream.tail(msgspec.structs.replace(command, after=after, wait_ms=wait_ms))
        after = page.next_cursor
        if page.frames or page.trimmed:
            yield page
        if not page.frames and (not waits or page.closed_at_ms is not None):
            return
