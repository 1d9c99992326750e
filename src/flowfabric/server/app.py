"""The server as one ASGI application: decode, call, encode.

Everything about operations comes from the manifest. What must stay true: no branch on domain state, one problem form
for every refusal, and nothing of a stack, a statement or a path in any answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, suppress
from time import perf_counter
from typing import Any, Final

import msgspec

from flowfabric.contract import limits, wire, wire_batch
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import (
    ExecutionNotActive,
    FlowFabricError,
    MethodNotAllowed,
    RouteNotFound,
    Unavailable,
)
from flowfabric.contract.execution import ResultCompleted
from flowfabric.contract.lease import LeaseClaim, LeaseRelease, LeasesClaimed
from flowfabric.contract.manifest import Kind, Operation
from flowfabric.contract.operations import OPERATIONS
from flowfabric.server import counting, openapi, pages, sse
from flowfabric.server.answers import JSON, NO_STORE, Answer, of_error, send_answer
from flowfabric.server.requests import ClientGone, Guard, Headers, Receive, Scope, Send, body_of, query_of
from flowfabric.server.routing import BATCH, Endpoint, Router
from flowfabric.server.settings import ServerSettings
from flowfabric.server.waiting import DRAINING, Load
from flowfabric.telemetry import log, metrics, trace

_LOG: Final = log.get_logger("flowfabric.server")
_ENCODER: Final = msgspec.json.Encoder()
PING_S: Final = 2.0
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"))

_HEADERS: Final[Mapping[str, tuple[tuple[bytes, bytes], ...]]] = {
    operation.name: (JSON,)
    if operation.concept == "execution" or operation.kind is Kind.MUTATION
    else (JSON, NO_STORE)
    for operation in OPERATIONS.values()
}
"""What goes with the reply of each operation."""

Call = Callable[[Any], Coroutine[Any, Any, Any]]


class InternalError(FlowFabricError):
    """Something went wrong in the server; it was logged under the request id."""

    code = "internal"
    http_status = 500


class Application:
    """The ASGI application in front of a store."""

    def __init__(self, stores: Stores, settings: ServerSettings) -> None:
        self._stores = stores
        self._settings = settings
        self._guard = Guard(settings.tokens, settings.cors_origins, settings.host)
        self._router = Router()
        self._calls: dict[str, Call] = {}
        self._openapi: bytes | None = None
        self.load = Load(settings.stream_operations)

    @property
    def is_draining(self) -> bool:
        """Say whether the server is shutting down."""
        return self.load.draining.is_set()

    def drain(self) -> None:
        """Stop being ready and end long waits; requests in flight finish."""
        self.load.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        started = perf_counter()
        headers = Headers(scope)
        more: list[tuple[bytes, bytes]] = [(b"x-request-id", headers.request_id())]
        if self._settings.cors_origins:
            more.extend(self._cors(headers))
        method: str = scope["method"]
        path = "unknown"
        operation: str | None = None
        outcome = "ok"
        try:
            headers.check()
            if method == "OPTIONS":
                answer: Answer | None = self._options(scope, headers)
            else:
                endpoint, parameters = self._router.find(method, scope["raw_path"])
                path = endpoint.path
                if not endpoint.is_open:
                    self._guard.check(headers)
                if endpoint is BATCH:
                    answer = await self._batch(headers, receive)
                elif endpoint.operation is None:
                    answer = await self._other(endpoint, parameters)
                else:
                    operation = endpoint.name
                    serving = self._serve(endpoint, parameters, scope, headers, receive, send, more)
                    if trace.is_on():
                        parent = headers.get(b"traceparent").decode("latin-1")
                        with _span(endpoint.name, endpoint.path, parent):
                            answer = await serving
                    else:
                        answer = await serving
        except ClientGone:
            return
        except FlowFabricError as error:
            outcome = error.code
            answer = of_error(error)
        except Exception:  # whatever it was, the client gets a problem body and the log the rest
            _LOG.exception("request_failed", path=path, method=method, request_id=more[0][1].decode("ascii"))
            outcome = InternalError.code
            answer = of_error(InternalError(request_id=more[0][1].decode("ascii")))
        status = 200
        if answer is not None:
            status = answer.status
            await send_answer(scope, send, answer, more, head=method == "HEAD")
        counted = method if method in METHODS else "OTHER"
        seconds = perf_counter() - started
        metrics.http_request(counted, path, status, seconds)
        if operation is not None:
            metrics.operation(operation, outcome, seconds)

    async def _serve(
        self,
        endpoint: Endpoint,
        parameters: dict[str, str],
        scope: Scope,
        headers: Headers,
        receive: Receive,
        send: Send,
        more: list[tuple[bytes, bytes]],
    ) -> Answer | None:
        operation = endpoint.operation
        assert operation is not None, "the caller looked"
        body = await body_of(headers, receive, operation.body_max, endpoint.path)
        command = wire.decode_command(
            operation, path=parameters, query=query_of(scope), body=body, route=endpoint.route
        )
        if operation.server_sent_events and sse.is_wanted(headers) and scope["method"] == "GET":
            if self.is_draining:
                raise Unavailable(DRAINING)
            resumed = sse.with_last_event(command, headers)
            async with self.load.stream_read():
                pass
            await sse.stream(self._stores, resumed, self.load, receive, send, more)
            return None
        reply = await self._call(operation, command, receive)
        if endpoint.raw:
            return _raw(reply)
        fixed = _HEADERS[operation.name]
        return Answer(operation.status_of(reply), wire.encode_reply(operation, reply), fixed)

    async def _batch(self, headers: Headers, receive: Receive) -> Answer:
        """Carry out several calls side by side; each has its own outcome."""
        body = await body_of(headers, receive, limits.BODY_BATCH_MAX, BATCH.path)
        calls = wire_batch.decode_calls(body)
        create_task = asyncio.get_running_loop().create_task
        tasks = [create_task(self._batched(call, receive)) for call in calls]
        try:
            # Most end in the same turn of the loop, so that only the first is really waited for.
            answers = [await task for task in tasks]
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        return Answer(200, wire_batch.encode_answers(answers))

    async def _batched(self, call: wire_batch.BatchCall, receive: Receive) -> tuple[int, bytes]:
        """Carry out one call of a batch; return its status and body."""
        started = perf_counter()
        outcome, name = "ok", None
        try:
            operation, command = wire_batch.decode_call(call)
            name = operation.name
            if trace.is_on():
                with _span(name, BATCH.path, call.traceparent):
                    reply = await self._call(operation, command, receive)
            else:
                reply = await self._call(operation, command, receive)
            answer = operation.status_of(reply), wire.encode_reply(operation, reply)
        except FlowFabricError as error:
            outcome = error.code
            answer = error.http_status, wire.encode_error(error)
        except Exception:  # whatever it was, the client gets a problem body and the log the rest
            number = secrets.token_hex(8)
            _LOG.exception("request_failed", path=BATCH.path, method="POST", op=name, request_id=number)
            outcome = InternalError.code
            answer = InternalError.http_status, wire.encode_error(InternalError(request_id=number))
        if name is not None:
            metrics.operation(name, outcome, perf_counter() - started)
        return answer

    async def _call(self, operation: Operation, command: Any, receive: Receive) -> Any:
        call = self._calls.get(operation.name)
        if call is None:
            call = getattr(getattr(self._stores, operation.concept), operation.verb)
            assert call is not None, "every operation has its method"
            self._calls[operation.name] = call
        if operation.long_wait:
            if self.is_draining:
                raise Unavailable(DRAINING)
            if command.wait_ms > 0:
                abandoned = self._hand_back if isinstance(command, LeaseClaim) else None
                return await self.load.wait_for(call(command), receive, abandoned)
        if operation.concept == "stream" and operation.paging:
            async with self.load.stream_read():
                return await call(command)
        count = counting.COUNTERS.get(operation.name)
        return await (call(command) if count is None else count(call(command), command))

    async def _hand_back(self, claimed: LeasesClaimed) -> None:
        """Return what was leased to a client that has gone away meanwhile."""
        for lease in claimed.leases:
            with suppress(FlowFabricError):  # the lease expires by itself
                await self._stores.lease.release(
                    LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason="caller_gone")
                )

    async def _other(self, endpoint: Endpoint, parameters: dict[str, str]) -> Answer:
        match endpoint.name:
            case "healthz":
                await self._ping()
                return Answer(200, b'{"status":"ok"}', (JSON, NO_STORE))
            case "readyz":
                if self.is_draining:
                    raise Unavailable(DRAINING)
                await self._ping()
                return Answer(200, b'{"status":"ready"}', (JSON, NO_STORE))
            case "capabilities":
                capabilities = await self._stores.capabilities()
                return Answer(200, _ENCODER.encode({**msgspec.to_builtins(capabilities), "limits": _LIMITS}))
            case "metrics":
                return _metrics()
            case "openapi":
                if self._openapi is None:
                    self._openapi = _ENCODER.encode(openapi.build())
                return Answer(200, self._openapi)
            case "root":
                return Answer(307, b"", ((b"location", b"/docs"),))
            case _:
                found = pages.read(parameters.get("file", "index.html"))
                if found is None:
                    raise RouteNotFound
                data, content_type = found
                return Answer(200, data, ((b"content-type", content_type.encode("ascii")), *pages.HEADERS))

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(PING_S):
                await self._stores.ping()
        except TimeoutError as error:
            raise Unavailable("the store does not answer") from error

    def _options(self, scope: Scope, headers: Headers) -> Answer:
        methods = self._router.methods_of(scope["raw_path"])
        if not methods:
            raise RouteNotFound
        allow = ", ".join(methods).encode("ascii")
        answer: list[tuple[bytes, bytes]] = [(b"allow", allow)]
        if headers.get(b"access-control-request-method") and self._allowed_origin(headers) is not None:
            allowed = b"content-type, last-event-id, x-request-id"
            if self._guard.is_on:
                allowed += b", authorization"
            answer += [
                (b"access-control-allow-methods", allow),
                (b"access-control-allow-headers", allowed),
                (b"access-control-max-age", b"600"),
            ]
        return Answer(204, b"", tuple(answer))

    def _allowed_origin(self, headers: Headers) -> bytes | None:
        origin = headers.get(b"origin")
        if not origin:
            return None
        if "*" in self._settings.cors_origins:
            return b"*"
        return origin if origin.decode("latin-1") in self._settings.cors_origins else None

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        allowed = self._allowed_origin(headers)
        vary = [(b"vary", b"origin")]
        return vary if allowed is None else [*vary, (b"access-control-allow-origin", allowed)]


_LIMITS: Final = {
    "create_many": limits.CREATE_MANY_MAX,
    "batch_calls": limits.BATCH_CALLS_MAX,
    "payload_bytes": limits.PAYLOAD_BYTES_MAX,
    "frame_bytes": limits.FRAME_BYTES_MAX,
    "wait_ms": limits.WAIT_MAX_MS,
}


def _span(name: str, path: str, parent: str | None) -> AbstractContextManager[Any]:
    """Open the span of a call of an operation, below the caller's own."""
    return trace.span(name, role="server", parent=parent or None, attributes={"op": name, "http.route": path})


def _raw(reply: Any) -> Answer:
    """Return the result's bytes with their own content type; a browser must not run them as a page of ours."""
    if not isinstance(reply, ResultCompleted):
        outcome: str = msgspec.to_builtins(reply)["status"]
        raise ExecutionNotActive(f"the execution has no result: it is {outcome}", terminal_outcome=outcome)
    if reply.result is None:
        return Answer(204)
    return Answer(
        200,
        reply.result.data,
        (
            (b"content-type", reply.result.content_type.encode("latin-1", "replace")),
            (b"x-content-type-options", b"nosniff"),
            (b"content-security-policy", b"sandbox; default-src 'none'"),
            NO_STORE,
        ),
    )


def _metrics() -> Answer:
    return Answer(200, metrics.render(), ((b"content-type", metrics.CONTENT_TYPE.encode("ascii")), NO_STORE))


def create_app(stores: Stores, settings: ServerSettings) -> Application:
    """Return the ASGI application for a store."""
    return Application(stores, settings)


class MetricsApplication:
    """Serves `/metrics` alone, for a loopback address of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            if scope["raw_path"] != b"/metrics":
                raise RouteNotFound
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodNotAllowed(allow=["GET"])
            answer = _metrics()
        except FlowFabricError as error:
            answer = of_error(error)
        await send_answer(scope, send, answer, (), head=scope["method"] == "HEAD")
