"""The listener: one connection of this process, outside the pool, on which commits of all processes are heard.

Writers only tell what somebody sleeps for. A process shows that by shared session locks on this connection, one per
(kind, bucket); `sql/functions/_core/announcing.sql` has the other half of the protocol. Locks are taken when somebody
is about to sleep, before the look that decides it, and are let go some seconds after the last sleeper left, so that a
process that keeps going to sleep asks nothing of the server for it. What must stay true: `hold` answers True only for
what is told from then on; whatever was not covered, for however short a time, is looked at again; a connection whose
state is in doubt is closed. Where the server cannot be listened to (a proxy lends connections for one transaction
only), nothing is held and everybody looks by themselves; that is said once, and tried again from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from flowfabric.backends.postgres.driver import ERRORS, Connection, Record, Statement
from flowfabric.backends.postgres.errors import sqlstate_of
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.errors import FlowFabricError
from flowfabric.telemetry import log

_LOG: Final = log.get_logger("flowfabric.backends.postgres")
QUERIES: Final = "sql/queries/push.sql"

Key = tuple[str, int]
"""What is slept for: kind and bucket."""

ANSWER_TIMEOUT_S: Final = 3.0
"""How long the server may take for one of the listener's statements before the connection counts as lost."""
PROBE_TIMEOUT_S: Final = 2.0
"""How long a notification to oneself may take before the server counts as one that cannot be listened to."""
CHECK_S: Final = 10.0
"""How often an idle connection is asked whether it is still there."""
PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 1.0
DEAF_PAUSE_MAX_S: Final = 60.0
"""How long until a server that could not be listened to is tried again, after a few times."""
KEEP_S: Final = 5.0
"""How long locks outlive the last sleeper."""
LEAD_S: Final = 15.0
"""How long a process leads that no longer asks whether it does."""
TRY_AGAIN_S: Final = (0.002, 0.005, 0.01)
"""Pauses between looks whether the writers that were under way have ended."""
AGAIN_S: Final = 0.25
"""Pause until they are looked for again."""
WAITED_FOR_MAX: Final = 4
"""Keys whose writers are waited for in one go, each for at most `patience`."""
_OUT_OF_PATIENCE: Final = "55P03"
_APPLICATION: Final = "flowfabric listener"


class Deaf(Exception):
    """The server was reached, and what is told there does not arrive here."""


class _Line:
    """One connection, what is prepared on it, and whether it is lost."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        self.prepared: Final[dict[str, Statement]] = {}
        self.lost: Final = asyncio.Event()
        connection.add_termination_listener(lambda _: self.lost.set())

    async def fetch(self, statement: str, arguments: Sequence[Any]) -> list[Record]:
        """Execute a statement, prepared at its first use."""
        prepared = self.prepared.get(statement)
        if prepared is None:
            prepared = await self.connection.prepare(statement, timeout=ANSWER_TIMEOUT_S)
            self.prepared[statement] = prepared
        return await prepared.fetch(*arguments, timeout=ANSWER_TIMEOUT_S)


class Listener:
    """Hears what is told, and shows that somebody sleeps. `begin` it, `close` it; belongs to its event loop."""

    def __init__(
        self, store: Store, *, hear: Callable[[str], None], covered: Callable[[Iterable[Key] | None], None]
    ) -> None:
        """`hear` takes payloads; `covered` wakes sleepers that have to look again, None: all of them."""
        self._store = store
        self._hear = hear
        self._told_covered = covered
        self._sql: Final = store.sql(QUERIES)
        self._line: _Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None
        self._asking: Final[set[asyncio.Task[bool]]] = set()
        self._using: Final = asyncio.Lock()
        self._tried: Final = asyncio.Event()
        self._probe = ""
        self._probed: Final = asyncio.Event()
        self._wanted: Final[dict[Key, int]] = {}
        self._left_at: Final[dict[Key, float]] = {}
        self._held: Final[set[Key]] = set()
        self._covered: Final[set[Key]] = set()
        self._leading: Final[dict[str, float]] = {}
        self._has_warned = False
        self._is_closed = False

    # For whom sleeps ----------------------------------------------------------------------------------------------

    @property
    def is_listening(self) -> bool:
        """Whether what is told arrives here."""
        return self._line is not None

    def begin(self) -> None:
        """Connect in the background, if that has not begun."""
        if self._task is None and not self._is_closed:
            self._task = self._store.spawn(self._run())

    async def tried(self) -> bool:
        """Return whether what is told arrives here, once that is known."""
        self.begin()
        await self._tried.wait()
        return self.is_listening

    def want(self, keys: Iterable[Key]) -> None:
        """Note that somebody may sleep for these; `unwant` takes it back."""
        for key in keys:
            self._wanted[key] = self._wanted.get(key, 0) + 1
            self._left_at.pop(key, None)

    def unwant(self, keys: Iterable[Key]) -> None:
        """Note that one sleeper less wants these."""
        for key in keys:
            count = self._wanted[key] - 1
            if count:
                self._wanted[key] = count
            else:
                del self._wanted[key]
                self._left_at[key] = time.monotonic()

    def hold(self, keys: Sequence[Key]) -> bool:
        """Return whether every commit that concerns these, which are wanted, is told.

        Where it is not so yet, `covered` says when it is, or when everybody has to look for another reason.
        """
        if self._covered.issuperset(keys):
            return True
        self.begin()
        if self._line is not None and self._taking is None:
            self._taking = self._store.spawn(self._take())
        return False

    async def lead(self, name: str) -> bool:
        """Say whether this process is the one that leads in something, as far as listeners are concerned.

        It stays so while it asks at least every few seconds; without a connection nobody does better.
        """
        if name in self._leading:
            self._leading[name] = time.monotonic()
            return True
        if self._line is None:
            return True
        asking = self._store.spawn(self._try_to_lead(self._line, name))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        # Whoever asks is not cancelled with what is asked when the store is closed.
        await asyncio.wait((asking,))
        return asking.cancelled() or asking.result()

    async def _try_to_lead(self, line: _Line, name: str) -> bool:
        try:
            async with self._using:
                if name in self._leading:
                    return True
                ((won,),) = await self._ask(line, "lead", name)
        except ERRORS:
            return True
        if won and line is self._line:
            self._leading[name] = time.monotonic()
        return bool(won)

    def still_leads(self, name: str) -> None:
        """Note that what this process leads in is under way."""
        if name in self._leading:
            self._leading[name] = time.monotonic()

    async def close(self) -> None:
        """Stop listening."""
        self._is_closed = True
        for task in (self._task, self._taking, *self._asking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._tried.set()

    # The connection -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep a connection that hears, for ever."""
        pause_s, deaf_s = PAUSE_S, PAUSE_MAX_S
        while True:
            try:
                connection = await self._store.dedicated(application=_APPLICATION)
                if connection is None:
                    raise Deaf(
                        "the proxy lends connections for one transaction only, and ?listener= names no other way"
                    )
                line = _Line(connection)
                try:
                    await self._listen(line)
                    pause_s, deaf_s = PAUSE_S, PAUSE_MAX_S
                    await self._serve(line)
                finally:
                    line.lost.set()
                    self._forget()
                    connection.terminate()
                reason = "the connection was lost"
            except Deaf as error:
                deaf_s = min(deaf_s * 2, DEAF_PAUSE_MAX_S)
                pause_s, reason = deaf_s, str(error)
            except (*ERRORS, FlowFabricError) as error:
                reason = str(error) or type(error).__name__
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning(
                    "no_push",
                    reason=reason,
                    consequence="waiting calls look by themselves once in a while until then",
                )
            self._tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _listen(self, line: _Line) -> None:
        """Listen, and make sure that what is told on another connection arrives on this one."""
        self._probed.clear()
        self._probe = f"p {secrets.token_hex(8)}"
        channel = await line.connection.fetchval(self._sql["channel"], timeout=ANSWER_TIMEOUT_S)
        await asyncio.wait_for(line.connection.add_listener(channel, self._notified), ANSWER_TIMEOUT_S)
        await self._store.calls.rows(self._sql["probe"], self._probe)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._probed.wait()
        except TimeoutError:
            raise Deaf("notifications do not arrive; a proxy may be in between") from None
        # Only now is it certain that these settings are those of a connection of our own.
        for name in ("patience", "no_end"):
            await line.connection.execute(self._sql[name], timeout=ANSWER_TIMEOUT_S)
        await self._take_wanted(line)
        self._line = line
        self._told_covered(None)
        self._tried.set()
        if self._has_warned:
            self._has_warned = False
            _LOG.info("push", state="what other processes do is heard of")

    async def _serve(self, line: _Line) -> None:
        """Return when the connection is lost; ask for that now and then, and let go of what nobody wants."""
        checked_at = time.monotonic()
        while not line.lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S / 2):
                    await line.lost.wait()
                return
            now = time.monotonic()
            async with self._using:
                await self._let_go(line, now)
                if now - checked_at >= CHECK_S:
                    checked_at = now
                    await line.connection.execute("SELECT 1", timeout=ANSWER_TIMEOUT_S)

    def _forget(self) -> None:
        """Note that nothing is heard any more, nor anything held."""
        self._held.clear()
        self._covered.clear()
        self._leading.clear()
        self._left_at.clear()
        if self._line is not None:
            self._line = None
            self._told_covered(None)

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text.startswith("p "):
            if text == self._probe:
                self._probed.set()
        else:
            self._hear(text)

    async def _ask(self, line: _Line, name: str, *arguments: Any) -> list[Record]:
        """Execute a statement on the listener's connection; should it fail, the connection is lost."""
        try:
            return await line.fetch(self._sql[name], arguments)
        except BaseException as error:
            if sqlstate_of(error) != _OUT_OF_PATIENCE:
                line.lost.set()
            raise

    # Locks --------------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Take the locks of everything that is wanted, for as long as something is not covered."""
        try:
            # Those who are about to sleep in this turn of the event loop are served together.
            pause_s = 0.0
            while (line := self._line) is not None:
                await asyncio.sleep(pause_s)
                async with self._using:
                    await self._take_wanted(line)
                if self._covered.issuperset(self._wanted):
                    return
                pause_s = AGAIN_S
        except ERRORS:
            # The connection counts as lost, and everybody looks again then, and once it is replaced.
            return
        finally:
            self._taking = None

    async def _take_wanted(self, line: _Line) -> None:
        waiting: list[Key] = []
        for pause_s in (0.0, *TRY_AGAIN_S):
            await asyncio.sleep(pause_s)
            await self._passed(line, "hold", [key for key in self._wanted if key not in self._held])
            waiting = [key for key in self._wanted if key in self._held and key not in self._covered]
            if pause_s:
                await self._passed(line, "try_passed", waiting)
            if self._covered.issuperset(self._wanted):
                return
        for key in waiting[:WAITED_FOR_MAX]:
            # Somebody always writes there, or for long. Waiting in line makes all who come later tell.
            try:
                await self._ask(line, "wait_passed", *key)
            except ERRORS:
                if line.lost.is_set():
                    raise
            else:
                self._cover(line, [key])

    async def _passed(self, line: _Line, name: str, keys: Sequence[Key]) -> None:
        """Take locks, or see whether the writers have ended that were under way when they were taken."""
        if not keys:
            return
        rows = await self._ask(line, name, [kind for kind, _ in keys], [bucket for _, bucket in keys])
        if not line.lost.is_set():
            self._held.update((kind, bucket) for kind, bucket, state in rows if state != "busy")
            self._cover(line, [(kind, bucket) for kind, bucket, state in rows if state == "covered"])

    def _cover(self, line: _Line, keys: Sequence[Key]) -> None:
        if keys and not line.lost.is_set():
            self._covered.update(keys)
            if line is self._line:
                self._told_covered(keys)

    async def _let_go(self, line: _Line, now: float) -> None:
        """Give back what nobody has wanted for a while."""
        gone = [key for key, left_at in self._left_at.items() if now - left_at >= KEEP_S]
        for key in gone:
            del self._left_at[key]
        gone = [key for key in gone if key in self._held]
        if gone:
            self._covered.difference_update(gone)
            self._held.difference_update(gone)
            await self._ask(line, "let_go", [kind for kind, _ in gone], [bucket for _, bucket in gone])
        for name in [name for name, asked_at in self._leading.items() if now - asked_at >= LEAD_S]:
            del self._leading[name]
            await self._ask(line, "follow", name)
