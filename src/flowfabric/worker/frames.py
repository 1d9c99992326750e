"""Writing an attempt's stream: frames are numbered, batched, and appended in order, one append in flight.

A lost reply is answered by sending the same frames with the same sequences again, for as long as the lease may live.
In buffered mode a caller waits only while too much is queued; in durable mode until its frame is acknowledged. Nothing
is lost silently: an append that is refused fails the next write and the flush that precedes every end of an attempt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from flowfabric.contract import limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, Unavailable
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Payload
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import FrameInput, FramesAppended, StreamAppend
from flowfabric.worker.leases import HeldLease, is_lost, loss_reason
from flowfabric.worker.settling import persist

LINGER_S: Final = 0.01
"""How long a buffered frame may wait for company."""

BATCH_FRAMES_MAX: Final = 256
BATCH_BYTES_MAX: Final = limits.BODY_APPEND_MAX - 4 * 1024
"""Bound of a batch as it looks over HTTP, leaving room for the envelope."""

QUEUE_FRAMES_MAX: Final = 1_024
QUEUE_BYTES_MAX: Final = 1024 * 1024
FRAME_ENVELOPE_BYTES: Final = 320


class FrameWriter:
    """Writes the frames of one attempt under one lease. Belongs to one event loop."""

    __slots__ = (
        "_acked",
        "_attempt_index",
        "_closed",
        "_durable",
        "_error",
        "_held",
        "_last",
        "_progressed",
        "_queue",
        "_queued_bytes",
        "_sender",
        "_stores",
        "_timer",
        "last_frame_id",
    )

    def __init__(self, stores: Stores, held: HeldLease) -> None:
        lease = held.lease
        self._stores = stores
        self._held = held
        self._attempt_index: int = lease.attempt_index
        self._last: int = lease.frame_sequence
        self._acked: int = lease.frame_sequence
        policy = lease.policy.stream_policy
        self._durable: bool = policy is not None and policy.durability_mode == "durable"
        self._queue: deque[FrameInput] = deque()
        self._queued_bytes: int = 0
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._progressed: asyncio.Event = asyncio.Event()
        self._error: FlowFabricError | None = None
        self._closed: bool = False
        self.last_frame_id: str | None = None

    async def write(
        self,
        payload: Payload,
        frame_type: str,
        mode: FrameMode,
        ttl_ms: int | None,
        correlation_id: str | None,
    ) -> int:
        """Queue a frame and return its sequence; wait for its acknowledgement in durable mode.

        Raises: the refusal, when this frame is malformed or the stream cannot be written any more.
        """
        self._raise_if_over()
        frame = FrameInput(
            sequence=self._last + 1,
            payload=payload,
            frame_type=frame_type,
            mode=mode,
            ttl_ms=ttl_ms,
            correlation_id=correlation_id,
        )
        frame.check()
        self._last = frame.sequence
        self._queue.append(frame)
        self._queued_bytes += _wire_bytes(frame)
        if self._durable:
            self._start_sending()
            await self._wait_acked(frame.sequence)
        elif len(self._queue) >= BATCH_FRAMES_MAX or self._queued_bytes >= BATCH_BYTES_MAX // 2:
            self._start_sending()
            while len(self._queue) > QUEUE_FRAMES_MAX or self._queued_bytes > QUEUE_BYTES_MAX:
                await self._wait_progress()
        elif self._sender is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._start_sending)
        return frame.sequence

    async def flush(self) -> None:
        """Wait until every frame written so far is acknowledged."""
        if self._acked < self._last:
            self._start_sending()
            await self._wait_acked(self._last)
        if self._error is not None:
            raise self._error

    async def close(self, *, flush: bool = True) -> None:
        """End the stream's use: acknowledge everything, or with `flush` off drop what is queued."""
        try:
            if flush:
                await self.flush()
        finally:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._sender is not None:
                sender, self._sender = self._sender, None
                sender.cancel()
                await asyncio.wait((sender,))

    def _raise_if_over(self) -> None:
        if self._closed:
            raise Misuse("this attempt has ended: its stream takes no more frames")
        if self._error is not None:
            raise self._error

    def _start_sending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None and not self._closed:
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def _wait_acked(self, sequence: int) -> None:
        while self._acked < sequence and self._error is None:
            await self._wait_progress()
        if self._acked < sequence and self._error is not None:
            raise self._error

    async def _wait_progress(self) -> None:
        if self._error is not None:
            raise self._error
        self._progressed.clear()
        self._start_sending()
        await self._progressed.wait()

    async def _send_all(self) -> None:
        try:
            while self._queue and self._error is None:
                batch = self._take_batch()
                reply: FramesAppended = await persist(
                    self._held, "stream.append", self._stores.stream.append, batch
                )
                self._acked = batch.frames[-1].sequence
                self.last_frame_id = reply.last_frame_id
                self._progressed.set()
        except FlowFabricError as error:
            self._fail(error)
        except Exception as error:  # frames that were taken from the queue must not be lost without a word
            self._fail(Unavailable(f"the stream cannot be written: {type(error).__name__}: {error}"))
        finally:
            self._sender = None
            self._progressed.set()

    def _take_batch(self) -> StreamAppend:
        frames: list[FrameInput] = []
        size = 0
        while self._queue and len(frames) < BATCH_FRAMES_MAX:
            cost = _wire_bytes(self._queue[0])
            if frames and size + cost > BATCH_BYTES_MAX:
                break
            size += cost
            frames.append(self._queue.popleft())
        self._queued_bytes -= size
        return StreamAppend(
            execution_id=self._held.lease.execution_id,
            attempt_index=self._attempt_index,
            fence=self._held.lease.fence,
            frames=tuple(frames),
        )

    def _fail(self, error: FlowFabricError) -> None:
        self._error = error
        self._queue.clear()
        self._queued_bytes = 0
        if isinstance(error, Refused) and is_lost(error):
            self._held.lose(loss_reason(error))


def _wire_bytes(frame: FrameInput) -> int:
    """Estimate how large a frame is in the body of an append."""
    size = len(frame.payload.data)
    if frame.payload.content_type != JSON_CONTENT_TYPE:
        size = size * 4 // 3 + 4
    return size + FRAME_ENVELOPE_BYTES
