"""Calling functions and reading: one statement each, sent again when nothing was executed, until the deadline.

A function refuses by returning a code; here it becomes the exception. Serialization failures, deadlocks, and
connections that were gone before anything was sent are never seen by callers. What must stay true: a statement that
changes something and may have been executed is reported as such and never sent twice; a read is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import errors
from flowfabric.backends.postgres.batching import LEFT_MIN_S, Batch, Batches
from flowfabric.backends.postgres.driver import ERRORS, Connection, Record, Transaction
from flowfabric.backends.postgres.errors import Trouble, Verdict
from flowfabric.backends.postgres.functions import in_schema
from flowfabric.backends.postgres.pool import Link, Pool, StatementFailed
from flowfabric.contract.errors import BY_CODE, Corrupt, Detail, Unavailable, from_code

CALL_TIMEOUT_S: Final = 10.0
PAUSE_MIN_S: Final = 0.005
PAUSE_MAX_S: Final = 0.5
AGAIN: Final = frozenset({"stale_catalog", "stale_version", "contended", "claim_in_use"})
"""Codes of functions for their adapters; no caller ever sees them."""

_DECODE: Final = msgspec.json.Decoder(list[Any]).decode
_DECODE_DETAILS: Final = msgspec.json.Decoder(dict[str, Detail]).decode


class Again(Exception):
    """A function could not go on with what it was given; nothing was written."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def refusal(code: str, message: str | None, details: str | None) -> Exception:
    """Build what is raised for a refusal that a function returned; `details` is a JSON object."""
    if code in AGAIN:
        return Again(code)
    if code not in BY_CODE:
        raise Corrupt(f"a function refused with a code that does not exist: {code}")
    try:
        found = _DECODE_DETAILS(details) if details is not None else {}
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a function refused with details that cannot be read: {error}") from error
    return from_code(code, message, found)


class Calls:
    """Calls functions of one store, and reads it."""

    def __init__(self, pool: Pool, schema: str, clock: ManualClock | None) -> None:
        self._pool = pool
        self._schema = schema
        self._clock = clock
        self._clock_written_ms: int | None = None
        self._now_ms: Final = in_schema("SELECT ff.now_ms()", schema)
        self._set_clock: Final = in_schema(
            "UPDATE ff.manual_clock SET now_ms = $1 WHERE now_ms <> $1", schema
        )
        self._statements: Final[dict[tuple[str, int], str]] = {}
        self._batches: Final = Batches(self._send_batch, schema)

    async def now_ms(self) -> int:
        """Return the store's time."""
        if self._clock is not None:
            return self._clock.now_ms()
        return int(await self.value(self._now_ms))

    # Cold functions ---------------------------------------------------------------------------------------------

    async def call(self, function: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> list[Any]:
        """Call a function that answers `code, message, details, value` and return the value, a list.

        Raises: the refusal, `Again`, Unavailable, OutcomeUnknown, ResourceExhausted.
        """
        key = (function, len(arguments))
        statement = self._statements.get(key)
        if statement is None:
            given = ", ".join(f"${at}" for at in range(1, len(arguments) + 1))
            statement = f"SELECT code, message, details, value FROM {self._schema}.{function}({given})"  # noqa: S608 -- constants
            self._statements[key] = statement
        rows = await self.change(statement, *arguments, timeout_s=timeout_s)
        code, message, details, value = rows[0]
        if code is not None:
            raise refusal(code, message, details)
        return _DECODE(value) if value is not None else []

    # Hot functions ----------------------------------------------------------------------------------------------

    async def hot(self, batch: Batch, command: Sequence[Any], key: str | None) -> Record:
        """Call a hot function together with whoever calls it at the same time, and return this command's row.

        `key` names what the command is about (an execution's uuid): two with the same key never share a statement.
        Raises: as `call`.
        """
        rows = await self.hot_rows(batch, command, key)
        if len(rows) != 1:
            raise Corrupt(f"{batch.function} answered a command with {len(rows)} rows")
        return rows[0]

    async def hot_rows(self, batch: Batch, command: Sequence[Any], key: str | None) -> list[Record]:
        """Call a hot function whose commands may have several rows, or none. Raises: as `call`."""
        rows = await self._batches.submit(batch, command, key)
        if rows and (code := rows[0]["code"]) is not None:
            raise refusal(code, rows[0]["message"], rows[0]["details"])
        return rows

    async def close(self) -> None:
        """End the batches under way; whoever waits for one is told."""
        await self._batches.close()

    async def _send_batch(self, statement: str, arguments: Sequence[Any], deadline: float) -> list[Record]:
        return await self._run(statement, arguments, deadline, changes=True)

    # Statements -------------------------------------------------------------------------------------------------

    async def rows(self, statement: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> list[Record]:
        """Read: execute a statement that changes nothing, again when its connection was lost.

        Raises: Unavailable, ResourceExhausted.
        """
        return await self._run(statement, arguments, time.monotonic() + timeout_s, changes=False)

    async def row(self, statement: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Record | None:
        """Read one row; None when there is none. Raises: as `rows`."""
        found = await self.rows(statement, *arguments, timeout_s=timeout_s)
        return found[0] if found else None

    async def value(self, statement: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Read the first column of one row; None when there is none. Raises: as `rows`."""
        found = await self.rows(statement, *arguments, timeout_s=timeout_s)
        return found[0][0] if found else None

    async def change(
        self, statement: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[Record]:
        """Execute a statement that changes something, and return its rows.

        Raises: Unavailable (nothing was changed), OutcomeUnknown, ResourceExhausted.
        """
        return await self._run(statement, arguments, time.monotonic() + timeout_s, changes=True)

    @contextlib.asynccontextmanager
    async def transaction(
        self, *, snapshot: bool = False, timeout_s: float = CALL_TIMEOUT_S
    ) -> AsyncGenerator[Connection]:
        """Lend a connection with a transaction under way; with `snapshot` it reads one state and writes nothing.

        The transaction is committed when the block is left, rolled back when that happens with an exception.
        `timeout_s` is how long a connection is waited for. Raises: as `change`, for what happens in the block too.
        """
        link, transaction = await self._begin(time.monotonic() + timeout_s, snapshot=snapshot)
        finished = False
        try:
            yield link.raw
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await transaction.commit()
            finished = True
        except ERRORS as error:
            raise errors.gave_up(errors.understand(error, sent=True), changes=not snapshot) from error
        finally:
            if finished:
                self._pool.release(link)
            else:
                self._pool.give_up(link)

    async def _begin(self, deadline: float, *, snapshot: bool) -> tuple[Link, Transaction]:
        """Start a transaction, on another connection when one turns out to be gone."""
        await self._tell_time()
        pause_s = PAUSE_MIN_S
        while True:
            try:
                link = await self._pool.acquire(deadline)
                transaction = (
                    link.raw.transaction(isolation="repeatable_read", readonly=True)
                    if snapshot
                    else link.raw.transaction()
                )
                try:
                    async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                        await transaction.start()
                except BaseException as error:
                    self._pool.drop(link)
                    if isinstance(error, ERRORS):
                        raise StatementFailed(errors.understand(error, sent=False)) from error
                    raise
                return link, transaction
            except StatementFailed as failed:
                if not _may_repeat(failed.trouble, changes=True) or deadline - time.monotonic() <= pause_s:
                    raise errors.gave_up(failed.trouble, changes=not snapshot) from failed
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # sleeps: backs off
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _run(
        self, statement: str, arguments: Sequence[Any], deadline: float, *, changes: bool
    ) -> list[Record]:
        """Execute a statement, again for as long as nothing was executed (a read: also when that is not known)."""
        await self._tell_time()
        pause_s = PAUSE_MIN_S
        while True:
            try:
                return await self._once(statement, arguments, deadline)
            except StatementFailed as failed:
                trouble = failed.trouble
                left_s = deadline - time.monotonic() - pause_s
                if not _may_repeat(trouble, changes=changes) or left_s < (LEFT_MIN_S if changes else 0.0):
                    raise errors.gave_up(trouble, changes=changes) from failed
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # sleeps: backs off
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _once(self, statement: str, arguments: Sequence[Any], deadline: float) -> list[Record]:
        pool = self._pool
        link = await pool.acquire(deadline)
        doubtful = True
        try:
            left_s = max(deadline - time.monotonic(), 0.001)
            found = await link.fetch(statement, arguments, left_s)
            doubtful = False
            return found
        except StatementFailed as failed:
            verdict = failed.trouble.verdict
            if verdict is Verdict.ELSEWHERE:
                pool.drop(link)
            else:
                doubtful = verdict is Verdict.LOST
            raise
        finally:
            pool.release(link, is_doubtful=doubtful)

    async def _tell_time(self) -> None:
        """Write the instant of a clock that tests move to where the functions read it."""
        if self._clock is None:
            return
        while (now_ms := self._clock.now_ms()) != self._clock_written_ms:
            try:
                await self._once(self._set_clock, (now_ms,), time.monotonic() + CALL_TIMEOUT_S)
            except StatementFailed as failed:
                if failed.trouble.verdict is Verdict.REFUSED:
                    raise errors.gave_up(failed.trouble, changes=False) from failed
                raise Unavailable(failed.trouble.reason) from failed
            self._clock_written_ms = now_ms


def _may_repeat(trouble: Trouble, *, changes: bool) -> bool:
    match trouble.verdict:
        case Verdict.AGAIN | Verdict.ELSEWHERE:
            return True
        case Verdict.LOST:
            return not changes
        case Verdict.OUT_OF_TIME | Verdict.REFUSED:
            return False
