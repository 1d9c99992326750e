"""Being woken by what other processes do: bells for work, channels for executions, timers and nothing else.

Claims that sleep in this process share one blocking call on the bells of all routes that they fit; each token it pops
wakes one of them. Tokens for which nobody is left are put back. Whoever waits for an execution has its channel
subscribed to. Everything here only wakes; `bells` decides who looks, and whoever looks finds out. What must stay true:
a token is given to a claim that looks after it was popped, or goes back; and should a token be lost with a process or
a connection, a look at the hints every few seconds rings again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from flowfabric.backends import waiting
from flowfabric.backends.bells import Bells, ClaimWaiter, Topic, deliver
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.wire import ServerError, Subscriber
from flowfabric.contract.errors import FlowFabricError, Unavailable
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.lease import LeaseClaim

T = TypeVar("T")

LISTEN_S: Final = 5.0
"""How long the blocking call waits, give or take a fifth, before one look at the hints."""
PATIENCE_S: Final = 3.0
"""How much later than it should the blocking call may answer."""
PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 1.0
TOKENS_AT_ONCE: Final = 64
OWN_BELL_MS: Final = 60_000
RINGS_PER_CALL: Final = 500


class Wakes:
    """What wakes this process's waiters. `start` it, `close` it."""

    def __init__(self, store: Store, hints: Hints) -> None:
        self._store = store
        self._bells = store.bells
        self._catalog = store.catalog
        self._hints = hints
        self._commands: Final[dict[ClaimWaiter, LeaseClaim]] = {}
        self._own_bell: Final = keys.bell(f"~{secrets.token_hex(10)}")
        self._heard_for: set[tuple[object, ...]] | None = None
        """For whom the blocking call that is out listens; None: none is out."""
        self._is_poked = False
        self._changed: Final = asyncio.Event()
        self._watched: Final[dict[str, _Watch]] = {}
        self._unsubscribe: Callable[[], None] | None = None

    async def start(self) -> None:
        """Subscribe to what concerns timers, and listen while claims sleep."""
        self._bells.on_unclaimed = self._put_back
        self._unsubscribe = self._catalog.subscribe(self._routes_changed)
        await self._store.client.subscriber().add(
            keys.DUE_CHANNEL.encode(), keys.GLOBAL_SLOT, self._due_heard
        )
        self._store.spawn(self._listen())

    def stop(self) -> None:
        """Take no more interest; the store ends what runs in the background."""
        self._bells.on_unclaimed = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    # Claims -------------------------------------------------------------------------------------------------------

    def enter(self, command: LeaseClaim) -> ClaimWaiter:
        """Register a claim that waits for work."""
        waiter = self._bells.add_claim(command)
        self._commands[waiter] = command
        return waiter

    def leave(self, waiter: ClaimWaiter, *, served: bool) -> None:
        """Forget a claim that ends; `served`: its latest look was carried out."""
        self._commands.pop(waiter, None)
        deliver(self._bells.remove_claim(waiter, served=served))

    async def sleep(self, waiter: ClaimWaiter, timeout_s: float) -> None:
        """Sleep until work may exist for the claim, or the timeout."""
        if waiter.token is None:
            command = self._commands[waiter]
            if self._heard_for is None:
                self._changed.set()
            elif _audience(command) not in self._heard_for:
                self._poke()
        await self._bells.sleep(waiter, timeout_s)

    def _routes_changed(self) -> None:
        if self._heard_for is None:
            self._changed.set()
        else:
            self._poke()

    def _poke(self) -> None:
        """Have the blocking call end, so that the next one listens for others too."""
        if not self._is_poked:
            self._is_poked = True
            self._store.spawn(self._ring_own_bell())

    async def _ring_own_bell(self) -> None:
        try:
            await self._store.client.execute(
                keys.GLOBAL_SLOT,
                [("RPUSH", self._own_bell, "1"), ("PEXPIRE", self._own_bell, OWN_BELL_MS)],
                repeatable=True,
            )
        except Unavailable:
            # The blocking call ends by itself before long.
            return

    # The blocking call --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Wait for tokens while claims sleep, for ever."""
        connection = await self._store.client.blocking(keys.GLOBAL_SLOT)
        pause_s = PAUSE_S
        may_have_missed = False
        while True:
            rids, audiences, sleeping = self._sleepers()
            if not rids:
                self._changed.clear()
                await self._changed.wait()
                # Those who fell asleep in this turn of the event loop are heard for together.
                await asyncio.sleep(0)
                continue
            self._heard_for, self._is_poked = audiences, False
            try:
                if may_have_missed:
                    await self._look(rids)
                    may_have_missed = False
                wait_s = LISTEN_S * (0.8 + 0.4 * random.random())  # noqa: S311 (jitter, no secret)
                reply = await connection.call(
                    (
                        "BLMPOP",
                        f"{wait_s:.2f}",
                        len(rids) + 1,
                        *map(keys.bell, rids),
                        self._own_bell,
                        "LEFT",
                        "COUNT",
                        max(1, min(sleeping, TOKENS_AT_ONCE)),
                    ),
                    wait_s + PATIENCE_S,
                )
                if isinstance(reply, ServerError):
                    raise Unavailable(f"waiting for work failed: {reply.message}")
                if reply is None:
                    await self._look(rids)
                else:
                    self._popped(reply)
                pause_s = PAUSE_S
            except FlowFabricError:
                # Tokens may be lost with the connection: look at the hints once it is back.
                may_have_missed = True
                self._heard_for = None
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_MAX_S)
            finally:
                self._heard_for = None

    def _sleepers(self) -> tuple[list[str], set[tuple[object, ...]], int]:
        """Return the routes that sleeping claims fit, for whom that is, and how many they are."""
        rids: dict[str, None] = {}
        audiences: set[tuple[object, ...]] = set()
        sleeping = 0
        for waiter, command in self._commands.items():
            if not waiter.idle:
                continue
            sleeping += 1
            audience = _audience(command)
            if audience not in audiences:
                audiences.add(audience)
                rids.update((route.rid, None) for route in self._catalog.fitting(command))
        return list(rids), audiences, sleeping

    async def _look(self, rids: list[str]) -> None:
        """Ring for work that is there; the bells then wake whom they wake."""
        for start in range(0, len(rids), RINGS_PER_CALL):
            await self._hints.ring(rids[start : start + RINGS_PER_CALL])

    def _popped(self, reply: Any) -> None:
        name, tokens = reply
        bell = name.decode()
        if bell == self._own_bell:
            return
        topic = self._hints.topic(bell.rpartition(":")[2])
        if topic is not None:
            deliver(self._bells.ring_work(topic, len(tokens)))

    def _put_back(self, topic: Topic, count: int) -> None:
        """Ring elsewhere for work that nobody here waits for any more."""
        rid = self._hints.rid(topic)
        if rid is not None:
            self._store.spawn(self._ring_bell(rid, count))

    async def _ring_bell(self, rid: str, count: int) -> None:
        try:
            await self._store.client.execute(
                keys.GLOBAL_SLOT, [("RPUSH", keys.bell(rid), *(["1"] * min(count, TOKENS_AT_ONCE)))]
            )
        except Unavailable:
            # Everybody looks by themselves before long.
            return

    # Timers and executions ----------------------------------------------------------------------------------------

    def _due_heard(self, message: bytes) -> None:
        """Wake timers; without a message some may have been missed."""
        deliver(self._bells.ring_due(int(message) if message else 0))

    async def wait_for(
        self,
        look: Callable[[], Awaitable[T]],
        is_enough: Callable[[T], bool],
        *,
        execution_id: ExecutionId,
        wait_ms: int,
    ) -> T:
        """Look until what is seen of an execution is enough, or `wait_ms` are over; return what was seen last."""
        seen = await look()
        if wait_ms <= 0 or is_enough(seen):
            return seen
        uuid = execution_uuid(execution_id)
        async with self.watching(self._store.partitions.of(execution_id), uuid):
            return await waiting.wait_for(look, is_enough, bells=self._bells, uuid=uuid, wait_ms=wait_ms)

    @asynccontextmanager
    async def watching(self, partition: Partition, uuid: str) -> AsyncGenerator[None]:
        """Have this process's watchers of an execution woken whenever it changes, wherever that happens."""
        watch = self._watched.get(uuid)
        if watch is None:
            watch = self._watched[uuid] = _Watch(
                self._store.client.subscriber(), partition, uuid, self._bells
            )
        watch.count += 1
        try:
            await watch.begin()
            yield
        finally:
            watch.count -= 1
            if watch.count == 0:
                del self._watched[uuid]
                await watch.end()


class _Watch:
    """The subscription that all watchers of one execution in this process share."""

    def __init__(self, subscriber: Subscriber, partition: Partition, uuid: str, bells: Bells) -> None:
        self.count = 0
        self._subscriber = subscriber
        self._channel = partition.channel(uuid).encode()
        self._uuid = uuid
        self._bells = bells
        self._adding = asyncio.create_task(subscriber.add(self._channel, partition.slot, self._changed))

    async def begin(self) -> None:
        """Return when every change from now on is heard of.

        Should the store not confirm that, whoever waits looks by itself every few seconds, and is told then that
        nobody is there.
        """
        with contextlib.suppress(Unavailable):
            await asyncio.shield(self._adding)

    async def end(self) -> None:
        """Stop listening."""
        # At once: a caller that is cancelled twice does not come back from waiting.
        self._subscriber.remove(self._channel, self._changed)
        self._adding.cancel()
        await asyncio.gather(self._adding, return_exceptions=True)

    def _changed(self, _: bytes) -> None:
        deliver(self._bells.ring_executions((self._uuid,)))


def _audience(command: LeaseClaim) -> tuple[object, ...]:
    """Return what decides which routes a claim fits."""
    return command.namespace, command.lanes, command.kinds, command.capabilities
