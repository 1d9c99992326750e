"""Calls made in one turn of the event loop travel as one request: sixteen results cost one exchange, not sixteen.

A call that is alone in its turn is sent by its own route, as ever; nothing waits for company. What must stay true: a
call's outcome, deadline and cancellation are its own, whoever it travels with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from flowfabric.client.transport import Answer, Request, Transport, Trouble
from flowfabric.contract import limits, wire, wire_batch
from flowfabric.contract.errors import OutcomeUnknown, PayloadTooLarge, own_copy
from flowfabric.contract.manifest import Operation
from flowfabric.telemetry import trace

CALL_BYTES_MAX: Final = 64 * 1024
"""Larger calls gain nothing from travelling together, and would hold up the others."""
TOGETHER_BYTES_MAX: Final = 512 * 1024
TIMEOUT_SPREAD_S: Final = 0.25
"""Calls travel together whose deadlines are this close; the nearest one counts for all."""
ALONE: Final = frozenset(("lease.renew",))
"""What never waits for the answers of others: a lease whose renewal is not confirmed in time counts as lost."""
_NO_BATCHES: Final = (404, 405)
"""What a server answers that knows no batches."""
_ABOUT_ALL: Final = (401, 408, 425, 429)
"""Refusals that concern who asks and when; any other may concern one call, or batches as such."""


class Joiner:
    """Gathers the calls of one turn of the event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport: Final = transport
        self._calls: list[_Call] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._knows_batches: bool = True

    async def exchange(self, operation: Operation, command: Any, timeout_s: float, *, long: bool) -> Answer:
        """Carry out a call, together with whatever else is called in this turn if its operation may be.

        Raises: as `Transport.exchange`; `PayloadTooLarge` before anything is sent.
        """
        traceparent = trace.current_traceparent()
        if self._knows_batches and operation.name in wire_batch.MEMBERS and operation.name not in ALONE:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            call = _Call(operation, command, traceparent, timeout_s, loop.create_future())
            if not self._calls:
                loop.call_soon(self._part)
            self._calls.append(call)
            answer = await call.answer
            if answer is not None:
                return answer
            timeout_s = max(0.001, timeout_s - (loop.time() - begun))
        sent = wire.encode_command(operation, command)
        _check_size(operation, sent.body, 0)
        request = Request(
            method=sent.method,
            path=sent.path,
            query=sent.query,
            body=sent.body,
            headers={} if traceparent is None else {"traceparent": traceparent},
            long=long,
        )
        return await self._transport.exchange(request, timeout_s)

    def _part(self) -> None:
        """Send what was called in this turn, in as many batches as its size asks for."""
        calls = [call for call in self._calls if not call.answer.done()]
        self._calls.clear()
        if len(calls) == 1:
            calls[0].answer.set_result(None)
            return
        batch: list[_Call] = []
        size = 0
        for call in calls:
            if abs(call.timeout_s - calls[0].timeout_s) > TIMEOUT_SPREAD_S:
                call.answer.set_result(None)
                continue
            if not call.encode():
                continue
            if size + len(call.body) > TOGETHER_BYTES_MAX or len(batch) == limits.BATCH_CALLS_MAX:
                self._start(batch)
                batch, size = [], 0
            batch.append(call)
            size += len(call.body)
        self._start(batch)

    def _start(self, batch: Sequence[_Call]) -> None:
        if len(batch) == 1:
            batch[0].answer.set_result(None)
        elif batch:
            task = asyncio.create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, batch: Sequence[_Call]) -> None:
        try:
            answers = await self._answers(batch)
        except BaseException as error:
            for call in batch:
                if not call.answer.done():
                    call.answer.set_exception(_told(error))
            if not isinstance(error, Exception):
                raise
            return
        for number, call in enumerate(batch):
            if not call.answer.done():
                call.answer.set_result(answers[number] if answers is not None else None)

    async def _answers(self, batch: Sequence[_Call]) -> list[Answer] | None:
        """Return each call's answer; None when they must be sent one by one after all."""
        body = wire_batch.join_calls(call.body for call in batch)
        request = Request(method="POST", path=wire_batch.PATH, body=body)
        answer = await self._transport.exchange(request, min(call.timeout_s for call in batch))
        if answer.status in _NO_BATCHES:
            self._knows_batches = False
        if 400 <= answer.status < 500 and answer.status not in _ABOUT_ALL:
            # Nothing of it was carried out, and it may be for the sake of one: each call hears what concerns it.
            return None
        if answer.status != 200:
            # Refused as a whole: not let in, shutting down, or no server of ours. Each call is told the same.
            return [answer] * len(batch)
        found = wire_batch.decode_answers(answer.body, len(batch))
        if found is None:
            # What each call is told when its own answer is not understood.
            return [answer] * len(batch)
        return [
            Answer(
                status=one.status, content_type=answer.content_type, retry_after_s=None, body=bytes(one.body)
            )
            for one in found
        ]


class _Call:
    """One call that waits for its turn to end, then for its answer: None when it is to go its own way."""

    __slots__ = ("answer", "body", "command", "operation", "timeout_s", "traceparent")

    def __init__(
        self,
        operation: Operation,
        command: Any,
        traceparent: str | None,
        timeout_s: float,
        answer: asyncio.Future[Answer | None],
    ) -> None:
        self.operation: Final = operation
        self.command: Final = command
        self.traceparent: Final = traceparent
        self.timeout_s: Final = timeout_s
        self.answer: Final = answer
        self.body: bytes = b""

    def encode(self) -> bool:
        """Write the call as it stands in a batch; False when it goes its own way, or nowhere."""
        try:
            self.body = wire_batch.encode_call(self.operation, self.command, self.traceparent)
            _check_size(self.operation, self.body, wire_batch.ENVELOPE_BYTES_MAX)
        except Exception as error:  # it is this caller's alone
            self.answer.set_exception(error)
            return False
        if len(self.body) > CALL_BYTES_MAX:
            self.answer.set_result(None)
            return False
        return True


def _check_size(operation: Operation, body: bytes | None, more: int) -> None:
    if body is not None and len(body) > operation.body_max + more:
        raise PayloadTooLarge(
            f"{operation.name} takes at most {operation.body_max} bytes, this would be {len(body)}",
            limit_bytes=operation.body_max,
        )


def _told(error: BaseException) -> Exception:
    """Return what one of the callers of a shared request is told."""
    if isinstance(error, Trouble):
        return Trouble(own_copy(error.error), sent=error.sent, retry_after_s=error.retry_after_s)
    if isinstance(error, Exception):
        return own_copy(error)
    return Trouble(OutcomeUnknown("the client was closed during the call"), sent=True)
