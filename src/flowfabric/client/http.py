"""The contract over REST: stores whose every method is derived from the manifest.

`HttpStores` is what an embedded backend is to its callers, minus timers and maintenance: one coroutine per operation,
taking the operation's command and returning its reply or raising its refusal. It re-sends by itself what is safe to
re-send, with the same ids, until its deadline; everything else it reports at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

import msgspec

from flowfabric.client import resend
from flowfabric.client.endpoint import parse_endpoint
from flowfabric.client.following import follow_by_polling
from flowfabric.client.joining import Joiner
from flowfabric.client.sse import EventParser
from flowfabric.client.transport import REPLY_BYTES_MAX, Answer, Request, Transport, Trouble
from flowfabric.contract import limits, wire
from flowfabric.contract.attempt import AttemptStore
from flowfabric.contract.backend import Capabilities
from flowfabric.contract.errors import (
    FlowFabricError,
    Misuse,
    OutcomeUnknown,
    Unauthorized,
    Unavailable,
    from_code,
)
from flowfabric.contract.execution import ExecutionStore
from flowfabric.contract.lane import LaneStore
from flowfabric.contract.lease import LeaseStore
from flowfabric.contract.operations import OPERATIONS, Operation
from flowfabric.contract.stream import FramePage, StreamStore, StreamTail
from flowfabric.contract.worker import WorkerStore
from flowfabric.version import VERSION

TIMEOUT_S: Final = 30.0
"""How long a call may take in all, re-sending included; long waits come on top."""
ATTEMPT_TIMEOUT_S: Final = 15.0
"""How long one sending of a repeatable call waits for its reply."""
SILENCE_MAX_S: Final = 60.0
"""A followed stream that sends nothing at all, not even a comment, for so long is opened anew."""

_TAIL: Final = OPERATIONS["stream.tail"]

Store = TypeVar("Store")
Call = Callable[[Operation, Any], Awaitable[Any]]


def _method(operation: Operation) -> Callable[..., Awaitable[Any]]:
    async def method(self: Any, command: Any) -> Any:
        if not isinstance(command, operation.command):
            raise Misuse(
                f"{operation.name} takes an {operation.command.__name__}, not {type(command).__name__}"
            )
        return await self._call(operation, command)

    method.__name__ = operation.verb
    method.__qualname__ = f"Http.{operation.name}"
    method.__doc__ = f"{operation.summary}\n\n{operation.description}".rstrip()
    return method


def _store(protocol: type[Store], concept: str, call: Call) -> Store:
    members: dict[str, Any] = {
        operation.verb: _method(operation)
        for operation in OPERATIONS.values()
        if operation.concept == concept
    }
    kind = type(f"Http{protocol.__name__}", (), {"__slots__": ("_call",), **members})
    store: Any = kind()
    store._call = call
    return cast("Store", store)


class HttpStores:
    """The stores of a FlowFabric server.

    Connections are opened on first use and belong to the event loop that is running then. Raises what the operations
    refuse with; `Unavailable` when no server can be reached; `OutcomeUnknown` when a call was sent, not answered, and
    could not be repeated safely or in time; `Unauthorized` when the server wants another token.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        trust_environment: bool = False,
    ) -> None:
        """Prepare to talk to a server; nothing is sent yet.

        `timeout_s` is the deadline of every call, in seconds, beside the time it asks the server to wait.
        `attempt_timeout_s` is how long one sending of a call that may be repeated waits before the next.
        `reply_bytes_max` bounds a reply. `trust_environment` uses the proxies named in the environment.
        """
        if not (timeout_s > 0 and attempt_timeout_s > 0):
            raise Misuse("timeout_s and attempt_timeout_s are numbers of seconds above 0")
        self._transport: Transport = Transport(
            parse_endpoint(url),
            token=token,
            user_agent=f"flowfabric/{VERSION}",
            reply_bytes_max=reply_bytes_max,
            trust_environment=trust_environment,
        )
        self._joiner: Joiner = Joiner(self._transport)
        self._timeout_s: float = timeout_s
        self._attempt_timeout_s: float = min(attempt_timeout_s, timeout_s)
        self._capabilities: Capabilities | None = None
        self.execution: ExecutionStore = _store(ExecutionStore, "execution", self.call)
        self.lease: LeaseStore = _store(LeaseStore, "lease", self.call)
        self.attempt: AttemptStore = _store(AttemptStore, "attempt", self.call)
        self.stream: StreamStore = _store(StreamStore, "stream", self.call)
        self.worker: WorkerStore = _store(WorkerStore, "worker", self.call)
        self.lane: LaneStore = _store(LaneStore, "lane", self.call)

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._transport.endpoint.base

    async def now_ms(self) -> int:
        """Return the server's clock, to within a second or two."""
        if not self._transport.reached:
            await self.capabilities()
        return self._transport.now_ms()

    async def close(self) -> None:
        """Close all connections; calls under way end with `Unavailable` or `OutcomeUnknown`."""
        await self._transport.close()

    async def ping(self) -> None:
        """Reach the server and its store, or raise `Unavailable`. It does not try again."""
        try:
            answer = await self._ask("/readyz", self._attempt_timeout_s)
        except Trouble as trouble:
            raise trouble.error from trouble
        if answer.status != 200:
            raise self._error(answer, "GET /readyz")

    async def capabilities(self) -> Capabilities:
        """Say what the server's store physically is."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def once(remaining_s: float) -> Capabilities:
            answer = await self._ask("/v1/capabilities", min(remaining_s, self._attempt_timeout_s))
            if answer.status != 200:
                raise _as_trouble(self._error(answer, "GET /v1/capabilities"), answer)
            return _decoded(answer, lambda body: msgspec.json.decode(body, type=Capabilities))

        found: Capabilities = await self._until(deadline, once, repeatable=True)
        self._capabilities = found
        return found

    async def call(self, operation: Operation, command: msgspec.Struct) -> Any:
        """Carry out any operation of the manifest; the stores' methods are this with one operation each."""
        check: Callable[[], None] | None = getattr(command, "check", None)
        if check is not None:
            check()
        if resend.lacks_id(command):
            known = self._capabilities or await self.capabilities()
            command = resend.with_ids(command, known.partitions)
        else:
            command = resend.with_ids(command, None)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        wait_ms: int = getattr(command, "wait_ms", 0) if operation.long_wait else 0
        wait_until = begun + wait_ms / 1_000
        repeatable = resend.is_repeatable(operation, command)

        async def once(remaining_s: float) -> Any:
            nonlocal command
            still_ms = 0
            if wait_ms:
                still_ms = max(0, min(wait_ms, round((wait_until - loop.time()) * 1_000)))
                if still_ms < wait_ms - 100:
                    command = resend.with_wait(command, still_ms)
            patience_s = self._attempt_timeout_s + still_ms / 1_000 if repeatable else remaining_s
            answer = await self._joiner.exchange(
                operation, command, min(patience_s, remaining_s), long=still_ms > 0
            )
            if not 200 <= answer.status < 300:
                raise _as_trouble(self._error(answer, operation.name), answer)
            try:
                return wire.decode_reply(operation, answer.body)
            except (msgspec.DecodeError, UnicodeDecodeError, FlowFabricError) as error:
                raise _not_understood(error) from error

        return await self._until(wait_until + self._timeout_s, once, repeatable=repeatable)

    async def _until(
        self, deadline: float, once: Callable[[float], Awaitable[Any]], *, repeatable: bool
    ) -> Any:
        """Try until there is an answer, the deadline passes, or trying again would not be safe."""
        loop = asyncio.get_running_loop()
        unknown: FlowFabricError | None = None
        for resends in range(resend.RESENDS_MAX):
            try:
                return await once(max(0.001, deadline - loop.time()))
            except Trouble as trouble:
                error = trouble.error
                if isinstance(error, OutcomeUnknown):
                    unknown = error
                pause_s = resend.backoff_s(resends, trouble.retry_after_s)
                may = not self._transport.closed and (repeatable if trouble.sent else self._transport.reached)
                late = loop.time() + pause_s + resend.ROOM_S >= deadline
                if late or not (may and resend.is_transient(error)):
                    # Once one sending may have been carried out, no later failure can say that nothing happened.
                    raise (
                        unknown if unknown is not None and resend.is_transient(error) else error
                    ) from trouble
            await asyncio.sleep(pause_s)
        raise unknown or Unavailable("the call was sent as often as it may be")

    async def _ask(self, path: str, timeout_s: float) -> Answer:
        return await self._transport.exchange(Request(method="GET", path=path), timeout_s)

    def _error(self, answer: Answer, what: str) -> FlowFabricError:
        status, base = answer.status, self.url
        if 300 <= status < 400:
            return Misuse(f"{base} redirects {what} elsewhere: give the server's own URL", url=base)
        if answer.content_type == "application/json":
            error = wire.decode_error(status, answer.body)
            is_ours = "http_status" not in error.details
            if is_ours and not isinstance(error, Unauthorized):
                return error
        if status == Unauthorized.http_status:
            return Unauthorized(
                f"{base} does not accept the token given: check FLOWFABRIC_TOKEN or token=..."
                if self._transport.has_token
                else f"{base} wants a token: set FLOWFABRIC_TOKEN, or pass token=...",
                url=base,
            )
        message = f"{base} answered {what} with status {status}, and not as a FlowFabric server: is it one?"
        if status in (408, 425, 429, 503):
            return Unavailable(message, url=base)
        if status >= 500:
            return OutcomeUnknown(message, url=base)
        return Misuse(message, url=base)

    # Following a stream -------------------------------------------------------------------------------------------

    async def follow(self, command: StreamTail) -> AsyncGenerator[FramePage]:
        """Yield the frames after a cursor as they are written, until the stream is closed.

        With `wait_ms` 0 it returns after the frames there are now. Otherwise it uses Server-Sent Events, and resumes
        after the last frame when the connection drops. Raises: what `stream.tail` refuses with; `Unavailable` when
        the server stays away longer than the timeout.
        """
        if command.wait_ms == 0:
            async with aclosing(follow_by_polling(self, command)) as pages:
                async for page in pages:
                    yield page
            return
        command.check()
        loop = asyncio.get_running_loop()
        after = command.after
        trouble_since: float | None = None
        resends = 0
        while True:
            command = msgspec.structs.replace(command, after=after, wait_ms=limits.WAIT_MAX_MS)
            try:
                async with aclosing(self._events(command)) as pages:
                    async for page, is_last in pages:
                        trouble_since, resends = None, 0
                        after = page.next_cursor or after
                        if page.frames or page.trimmed:
                            yield page
                        if is_last:
                            return
                pause_s = resend.backoff_s(resends, None)
            except Trouble as trouble:
                now = loop.time()
                trouble_since = now if trouble_since is None else trouble_since
                pause_s = resend.backoff_s(resends, trouble.retry_after_s)
                may = not self._transport.closed and (trouble.sent or self._transport.reached)
                late = now + pause_s >= trouble_since + self._timeout_s
                if late or not may or not resend.is_transient(trouble.error):
                    raise trouble.error from trouble
            resends += 1
            await asyncio.sleep(pause_s)

    async def _events(self, command: StreamTail) -> AsyncGenerator[tuple[FramePage, bool]]:
        """Yield what one connection sends: pages, and whether the page is the last."""
        sent = wire.encode_command(_TAIL, command)
        headers = {"Accept": "text/event-stream"}
        if command.after is not None:
            headers["Last-Event-ID"] = command.after
        request = Request(method="GET", path=sent.path, query=sent.query, headers=headers, long=True)
        async with self._transport.opened(
            request, self._attempt_timeout_s + limits.WAIT_MAX_MS / 1_000
        ) as response:
            if response.status != 200 or response.content_type != "text/event-stream":
                answer = await self._transport.answer_of(request, response)
                if answer.status != 200:
                    raise _as_trouble(self._error(answer, f"GET {sent.path}"), answer)
                page: FramePage = _decoded(answer, lambda body: wire.decode_reply(_TAIL, body))
                yield page, not page.frames and page.closed_at_ms is not None
                return
            self._transport.reached = True
            parser = EventParser()
            while True:
                try:
                    async with asyncio.timeout(SILENCE_MAX_S):
                        piece = await response.content.readany()
                except TimeoutError:
                    return
                if not piece:
                    return
                for event in parser.feed(piece):
                    if event.name == "error":
                        raise _event_error(event.data)
                    read = _page_of(event.name, event.data, event.last_event_id)
                    if read is not None:
                        yield read


def _page_of(name: str, data: bytes, last_event_id: str) -> tuple[FramePage, bool] | None:
    """Turn an event into a page; an event of a kind this version does not know is None."""
    frames, closed, trimmed = b"", b"null", b"false"
    match name:
        case "frame":
            frames = data
        case "trimmed":
            trimmed = b"true"
        case "closed":
            closed = b"0"
        case _:
            return None
    document = b'{"frames":[%b],"next_cursor":%b,"trimmed":%b,"closed_at_ms":%b,"closed_reason":null}' % (
        frames,
        msgspec.json.encode(last_event_id),
        trimmed,
        closed,
    )
    try:
        return wire.decode_reply(_TAIL, document), name == "closed"
    except (msgspec.DecodeError, FlowFabricError) as error:
        raise Misuse(f"the server sent a {name} event that is none: {error}") from error


def _event_error(data: bytes) -> FlowFabricError:
    """Return the error that ends a stream of events."""
    try:
        document = msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = {}
    return from_code(document.get("code", Unavailable.code), document.get("message"))


def _as_trouble(error: FlowFabricError, answer: Answer) -> FlowFabricError | Trouble:
    """Wrap an error that waiting may cure; any other is raised as it is."""
    if resend.is_transient(error):
        wait_ms = error.details.get("retry_after_ms")
        wait_s = wait_ms / 1_000 if isinstance(wait_ms, int | float) else answer.retry_after_s
        return Trouble(error, sent=True, retry_after_s=wait_s)
    return error


Decoded = TypeVar("Decoded")


def _decoded(answer: Answer, decode: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, FlowFabricError) as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> Misuse:
    return Misuse(
        f"the server's reply cannot be understood ({error}): are its version and this client's the same?"
    )
