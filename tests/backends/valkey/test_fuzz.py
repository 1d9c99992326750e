"""Functions of the library under malformed calls: every one answers, and what is refused has written nothing.

Ten thousand argument vectors per function on one server, five hundred on a cluster: wrong counts, types and numbers,
empty, binary and huge texts, keys of other kinds, tags and partitions, and vectors that look right, thrown at a store
with executions in many states. What a vector is made of follows from the function's own header. Vectors come from a
seeded generator, so a failure names the number of the vector and comes again.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import hiredis
import msgspec
import pytest

from flowfabric import backends
from flowfabric.backends.valkey import keys, library
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.library import GLOBAL_KINDS, PARTITION_KINDS, Function
from flowfabric.backends.valkey.record import Static
from flowfabric.backends.valkey.wire import slot_of
from flowfabric.contract.ids import mint_uuid
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import BlockingReason, FailureClass, LaneState
from tests.backends.filling import Filling, Made
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Cluster, Server
from tests.valkey.servers import server_version

CLUSTER_VECTORS: Final = 500
VECTORS: Final = 10_000 if server_version() >= (9, 0, 0) else CLUSTER_VECTORS
"""For each function on a single server; an older one than the newest is only looked at."""
EPOCH: Final = 100
"""After so many vectors the store is put back as it was."""
UNBORN: Final = 8
"""Executions that do not exist until a vector makes them."""
GROUP: Final = 20
"""Vectors that are sent together."""

LIBRARY: Final = library.assemble()
NAMES: Final = sorted(LIBRARY.functions)
CHANGES: Final = (b"INFO", b"persistence")
"""Holds how many changes the server counts, which is stricter than comparing what it holds."""

WRITES_AND_REFUSES: Final = {
    "lease_expired": None,
    "stale_owner_cannot_append": None,
    "execution_not_leaseable": ("lease_claim_granted",),
    "execution_not_reclaimable": ("lease_grant",),
    "execution_not_eligible": ("lease_grant",),
    "grant_already_exists": ("lease_grant",),
    "lane_not_accepting": ("lease_grant",),
    "use_claim_resumed_execution": ("lease_grant",),
    "not_a_resumed_execution": ("lease_grant",),
    "capability_mismatch": ("lease_grant",),
}
"""Refusals that may find out that a lease ran out, or that the execution has to end, and record it."""

Vector = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""Keys and arguments."""


# The store that is fuzzed -----------------------------------------------------------------------------------------


class Subject:
    """An execution of the store, with everything a call about it may need."""

    def __init__(self, made: Made) -> None:
        self.partition: Final = Partition(int(made.execution_id[4 : made.execution_id.index("}")]))
        self.uuid: Final = made.execution_id[-36:]
        self.lane: Final = made.lane
        self.lease: Final = made.lease
        self.rid: Final = keys.route_id(made.namespace, made.lane, "k|")


_COUNTER: Final = b"rdb_changes_since_last_save:"


class Pipe:
    """A connection that sends many commands and reads all replies, errors among them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._reader = hiredis.Reader(notEnoughData=...)

    def __call__(self, commands: Sequence[tuple[bytes | int, ...]]) -> list[Any]:
        self._socket.sendall(b"".join([hiredis.pack_command(command) for command in commands]))  # pyright: ignore[reportArgumentType]
        replies: list[Any] = []
        while len(replies) < len(commands):
            while (reply := self._reader.gets()) is not ...:
                replies.append(reply)
            if len(replies) < len(commands):
                self._reader.feed(self._socket.recv(1 << 20))
        return replies

    def close(self) -> None:
        self._socket.close()


class Store:
    """A populated store that can be put back as it was, on one server or more."""

    def __init__(self, servers: Sequence[Server], url: str, owner: Callable[[int], Server]) -> None:
        self.subjects: Final = asyncio.run(_filled(url))
        self._pipes: Final = {server.port: Pipe(server.port) for server in servers}
        self._owner: Final = owner
        self._by_slot: Final[dict[int, Pipe]] = {}
        self._saved: Final = {pipe: self._save(pipe) for pipe in self._pipes.values()}
        self.keys: Final[list[bytes]] = [bytes(key[1]) for saved in self._saved.values() for key in saved]

    def restore(self) -> None:
        """Put everything back."""
        for pipe, saved in self._saved.items():
            pipe([(b"FLUSHALL",), *saved])

    def pipe_of(self, key: bytes) -> Pipe:
        """Return the connection to the server that owns a key."""
        slot = slot_of(key) if len(self._pipes) > 1 else 0
        if slot not in self._by_slot:
            self._by_slot[slot] = self._pipes[self._owner(slot).port]
        return self._by_slot[slot]

    def changes(self) -> dict[Pipe, int]:
        """Return how many changes each server has counted."""
        return {pipe: changes_of(pipe([CHANGES])[0]) for pipe in self._saved}

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()

    def _save(self, pipe: Pipe) -> list[tuple[bytes | int, ...]]:
        """Return the commands that make every key of a server again."""
        (names,) = pipe([(b"KEYS", b"*")])
        ttls, dumps = pipe([(b"PTTL", name) for name in names]), pipe([(b"DUMP", name) for name in names])
        return [
            (b"RESTORE", name, max(ttl_ms, 0), dumped)
            for name, ttl_ms, dumped in zip(names, ttls, dumps, strict=True)
        ]


def changes_of(info: bytes) -> int:
    """Read the count of changes out of INFO."""
    start = info.index(_COUNTER) + len(_COUNTER)
    return int(info[start : info.index(b"\r", start)])


async def _filled(url: str) -> list[Subject]:
    backend = await backends.connect(url, partitions=FEW)
    try:
        filling = Filling(backend)
        await filling.fill()
        unborn = [
            Made(f"{{fp:{number % FEW.flow}}}:{mint_uuid()}", "default", None, "default")
            for number in range(UNBORN)
        ]
        return [Subject(made) for made in (*filling.made, *unborn)]
    finally:
        await backend.close()


@pytest.fixture(scope="module")
def alone() -> Iterator[Store]:
    with Server() as server:
        server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        store = Store([server], server.url, lambda _: server)
        yield store
        store.close()


@pytest.fixture(scope="module")
def spread(whole_cluster: Cluster) -> Iterator[Store]:
    primaries = [node for node in whole_cluster.nodes if b"role:master" in node.call("INFO", "replication")]
    for node in primaries:
        node.call("FLUSHALL")
        node.call("FUNCTION", "FLUSH")
    store = Store(primaries, whole_cluster.url, whole_cluster.owner)
    yield store
    store.close()


# Vectors ----------------------------------------------------------------------------------------------------------

GARBAGE: Final[tuple[bytes, ...]] = (
    *(b"", b" ", b"0", b"1", b"-1", b"2", b"1.5", b"01", b" 1", b"1 ", b"+1", b"0x10", b"1e3", b"-0"),
    *(b"9007199254740991", b"9007199254740992", b"18446744073709551616", b"9" * 400, b"-" + b"9" * 400),
    *(b"1e999", b"-1e999", b"nan", b"-nan", b"inf", b"-inf", b"Infinity", b"1e-400", b"5e-324"),
    *(
        b"\x00",
        b"\x00" * 64,
        b"\xff" * 9,
        bytes(range(256)),
        b"x" * 70_000,
        b"\r\n",
        b"\n",
        b"%",
        b"%s",
        b"[",
    ),
    *(b"null", b"true", b"false", b"{}", b"[]", b'{"a":1}', b'{"a.b":"c"}', b"[[[[[[", b'"\\ud800"'),
    *(
        b"\xc0",
        b"\xc1",
        b"\x90",
        b"\x93\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xcb\x7f\xf8",
    ),
    *(b"{w}:meta", b"{fp:0}:due", b"{fp:0}:x:", b"{fp:99999}:all", b"{}", b"{fp:-1}:due", b"fp:0", b"x:"),
    *(b"00000000-0000-0000-0000-000000000000", b"A" * 36, b"-" * 36, b"\xe2\x82\xac" * 12),
)
TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "after": ("-", "(0-0", "(1-1", "(99999999999999999999999-0", "(1-99999999999999999999999", "(1-1-1"),
    "class": tuple(kind.value for kind in FailureClass),
    "details": ("[]", '[["default"],["k"],[]]'),
    "digest": ("", "d" * 32),
    "document": ("{}", '{"a":1}'),
    "fault": ("summary_too_large", "invalid_input"),
    "instance": ("w-1", "v-1"),
    "lane": ("default", "paused", "closed", "lane-1", "lane-2"),
    "mode": ("claim", "repeat"),
    "namespace": ("default", "other"),
    "purpose": ("claim", "resume", "reclaim"),
    "reason": (
        *("attempt_timeout", "execution_deadline", "because"),
        *(reason.value for reason in BlockingReason),
    ),
    "result_type": ("application/json", "text/plain"),
    "route": ("k|", "k|gpu"),
    "state": tuple(state.value for state in LaneState),
    "tags": ('{"a.b":"c"}', "[1]", '{"a":null}', "3"),
    "worker_id": ("w", "v"),
    "worker_instance": ("w-1", "v-1"),
}
"""What texts of these names may say."""
SMALL: Final[dict[str, tuple[str, ...]]] = {
    "attempt_index": (*("0",) * 9, "1"),
    "first": ("1", "2", "3", "4"),
    "most": ("0", "1", "2"),
    "seen": ("0", "2"),
    "wanted": ("0", "1", "1", "2"),
    "woken": ("0", "1"),
    "workers": ("0", "1", "2"),
}
"""What numbers of these names may say."""
RESTS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("execution_reindex", "holders"): ("holder",),
    ("execution_set_tags", "tags"): ("tag", "text"),
    ("hints_offer", "offers"): ("index", "small", "score", "small"),
    ("hints_offer_due", "offers"): ("small", "int"),
    ("hints_take", "given"): ("index", "small", "taken", "taken", "small"),
    ("hints_take_due", "given"): ("small", "due"),
    ("lease_claim", "ids"): ("uuid",),
    ("lease_grant", "missing"): ("text",),
    ("stream_append", "frames"): ("frame_mode", "header", "payload"),
    ("worker_count_held", "instances"): ("instance",),
    ("worker_register", "published"): ("kind", "defaults"),
    ("worker_renewed", "instances"): ("instance",),
}
"""What the remaining arguments of a function are, in turn."""
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "defaults": ('{"kind":"k"}', "{}"),
    "due": ("", "keep", "0", "1", "1760000000000"),
    "frame_mode": ("d", "s", "b1000", "b0", "b99999999"),
    "header": ("\x93\x01\x02\x03", "header"),
    "index": ("1", "1", "1", "1", "2", "0"),
    "instance": ("w-1", "v-1", "u-1"),
    "int": ("0", "1", "1760000000000", "9007199254740991"),
    "kind": ("k", "k2"),
    "payload": ("{}", '{"b":2}'),
    "score": ("0", "-8e15", "-8999999999999999", "1760000000000", "1e300"),
    "taken": ("", "1760000000000"),
    "small": ("0", "1", "3", "15", "16", "300"),
    "tag": ("a.b", "c.d", "e.f"),
    "text": ("", "x", "\u00fc", '"', "\\"),
}


class Generator:
    """Makes vectors for one function."""

    def __init__(self, function: Function, store: Store) -> None:
        self._function = function
        self.name: Final = function.name
        self._subjects = store.subjects
        self._keys = store.keys
        self._preferred = store.subjects
        if function.name == "execution_create":
            self._preferred = store.subjects[-UNBORN:]
        elif any(argument.name == "lease_id" for argument in function.arguments):
            self._preferred = [subject for subject in store.subjects if subject.lease is not None]
        self._random = random.Random(function.name)

    def plausible(self) -> Vector:
        """Make a vector that looks right: about one execution, with arguments of the declared types."""
        chosen, function = self._random, self._function
        subject = chosen.choice(self._preferred if chosen.random() < 0.7 else self._subjects)
        given = 0.9 if function.name == "stream_append" else 0.6
        named = [self._key(kind, subject) for kind in function.keys]
        named += [self._key(kind, subject) for kind in function.optional_keys if chosen.random() < given]
        if function.name == "execution_complete":
            return self._completions(named)
        if function.name == "execution_create":
            return self._creates()
        for kind in function.repeated_keys:
            named += [self._key(kind, subject) for _ in range(chosen.choice((0, 1, 2, 2, 3)))]
        values: list[bytes] = []
        for argument in function.arguments:
            if argument.name == "ids" and chosen.random() < 0.95:
                # As many as leases are asked for.
                most = int(values[[other.name for other in function.arguments].index("most")])
                values += [self._part("uuid", subject) for _ in range(2 * min(most, 300))]
            elif argument.type == "rest":
                values += self._rest(RESTS[function.name, argument.name], subject)
            elif argument.optional and chosen.random() < 0.2:
                values.append(b"")
            else:
                values.append(self._value(argument.name, argument.type, subject))
        return tuple(named), tuple(values)

    def _completions(self, named: list[bytes]) -> Vector:
        """Make a vector that completes one to three executions of one partition and route."""
        chosen = self._random
        first = chosen.choice(self._preferred)
        alike = [each for each in self._subjects if each.partition == first.partition]
        subjects = [first, *chosen.sample(alike, min(chosen.choice((0, 0, 1, 2)), len(alike)))]
        named = [self._key(kind, first) for kind in self._function.keys]
        values: list[bytes] = []
        staged: list[bytes] = []
        for subject in subjects:
            named.append(self._key("execution", subject))
            if is_staged := chosen.random() < 0.2:
                staged.append(self._key("payload", subject))
            fence = ("lease_id", "lease_epoch", "attempt_id", "lane", "route")
            values += [
                self._value(name, "int" if name == "lease_epoch" else "text", subject)
                if chosen.random() < 0.95
                else b""
                for name in fence
            ]
            values += [
                self._value("digest", "text", subject),
                chosen.choice((b"", b"me")),
                chosen.choice((b"", b"text/plain")),
                str(int(is_staged)).encode(),
                b"" if is_staged else chosen.choice((b"", b"1")),
            ]
        return (*named, *staged), tuple(values)

    def _creates(self) -> Vector:
        """Make a vector that creates one to three executions of one partition, most of them of one route."""
        chosen = self._random
        first = chosen.choice(self._preferred if chosen.random() < 0.7 else self._subjects)
        alike = [each for each in self._preferred if each.partition == first.partition]
        subjects = [first, *chosen.sample(alike, min(chosen.choice((0, 0, 1, 2)), len(alike)))]
        named = [self._key(kind, first) for kind in self._function.keys]
        idempotent: list[bytes] = []
        staged: list[bytes] = []
        values = [chosen.choice((b"0", b"1", b"1", b"1"))]
        for subject in subjects:
            named.append(self._key("execution", subject))
            if is_named := chosen.random() < 0.3:
                idempotent.append(self._key("idempotency", subject))
            payloads: list[bytes] = []
            if chosen.random() < 0.2:
                payloads.append(self._key("payload", subject))
            staged += payloads
            values += [
                self._value("digest", "text", subject),
                self._static([*named[: len(self._function.keys)], *payloads]),
                b'{"kind":"k"}',
                chosen.choice((b"", b'{"a.b":"c"}')),
                b"" if payloads else chosen.choice((b"", b"1")),
                self._value("priority", "int", subject),
                b"" if chosen.random() < 0.7 else self._value("delay_until_ms", "int", subject),
                self._value("window_ms", "int", subject),
                str(int(is_named)).encode(),
                str(len(payloads)).encode(),
            ]
        return (*named, *idempotent, *staged), tuple(values)

    def malformed(self) -> Vector:
        """Make a vector that looked right, with one to three things wrong."""
        named, values = map(list, self.plausible())
        for _ in range(self._random.choice((1, 1, 2, 3))):
            self._spoil(named, values)
        return tuple(named), tuple(values)

    def _spoil(self, named: list[bytes], values: list[bytes]) -> None:
        chosen = self._random
        which = named if chosen.random() < 0.4 else values
        at = chosen.randrange(len(which)) if which else 0
        match chosen.randrange(8):
            case 0:
                del which[at : at + 1]
            case 1:
                which.insert(at, self._garbage())
            case 2:
                del which[at:]
            case 3 if which:
                other = chosen.randrange(len(which))
                which[at], which[other] = which[other], which[at]
            case 4 if which:
                which[at] = chosen.choice(self._keys)
            case 5 if which:
                cut = chosen.randrange(len(which[at]) + 1)
                which[at] = which[at][:cut] + self._garbage()[:80] + which[at][cut + chosen.randrange(2) :]
            case _ if which:
                which[at] = self._garbage()
            case _:
                which.append(self._garbage())

    def _garbage(self) -> bytes:
        if self._random.random() < 0.2:
            return self._random.randbytes(self._random.choice((1, 2, 8, 20, 36, 300)))
        return self._random.choice(GARBAGE)

    def _key(self, kind: str, subject: Subject) -> bytes:
        partition, chosen = subject.partition, self._random
        kinds = GLOBAL_KINDS if self._function.is_global else PARTITION_KINDS
        start = (keys.GLOBAL if self._function.is_global else partition.tag) + kinds[kind]
        match kind:
            case "execution":
                return (start + (mint_uuid() if chosen.random() < 0.03 else subject.uuid)).encode()
            case "eligible" | "hints" | "bell":
                other = chosen.choice(self._subjects)
                return (start + (subject if chosen.random() < 0.9 else other).rid).encode()
            case "durable" | "summary" | "lossy":
                return f"{start}{subject.uuid}:{int(chosen.random() < 0.05)}".encode()
            case "routes":
                return (start + chosen.choice((subject.lane, "paused"))).encode()
            case "workers":
                return (start + chosen.choice(("default", "other"))).encode()
            case _ if start.endswith(":"):
                known = [key for key in self._keys if key.startswith(start.encode())]
                return (
                    chosen.choice(known) if known and chosen.random() < 0.7 else (start + "x" * 24).encode()
                )
            case _:
                return start.encode()

    def _value(self, name: str, kind: str, subject: Subject) -> bytes:
        chosen, fence = self._random, subject.lease.fence if subject.lease is not None else None
        name = name.removeprefix("expected_")
        if fence is not None and name in Fence.__struct_fields__ and chosen.random() < 0.95:
            return str(getattr(fence, name)).encode()
        match kind:
            case "int" if name in SMALL and chosen.random() < 0.8:
                return chosen.choice(SMALL[name]).encode()
            case "int":
                now_ms = int(time.time() * 1_000)
                return str(
                    chosen.choice((0, 0, 1, 2, 3, 100, 1_000, 60_000, now_ms, now_ms + 9_999))
                ).encode()
            case "number":
                return str(chosen.choice((0, 1, -1, 0.5, 99.9, 100, 101, -8e15, 1e300))).encode()
            case "flag":
                return chosen.choice((b"0", b"1"))
            case "uuid":
                return (mint_uuid() if chosen.random() < 0.5 else subject.uuid).encode()
            case _ if name == "reason" and self._function.name == "execution_expire":
                return chosen.choice(("attempt_timeout", "execution_deadline")).encode()
            case _ if name in TEXTS and chosen.random() < 0.9:
                return chosen.choice(TEXTS[name]).encode()
            case _:
                return self._garbage()

    def _static(self, named: Sequence[bytes]) -> bytes:
        """Make a packed definition that fits the keys, now and then with a field of another type."""
        chosen = self._random
        rid = next((key.rpartition(b"q:")[2].decode() for key in named if b"}:q:" in key), "")
        nonce = next((key.rpartition(b"p:")[2].decode() for key in named if b"}:p:" in key), None)
        fields: dict[str, Any] = {
            name: chosen.choice((None, None, 0, 1, 1_000)) for name in Static.__struct_fields__
        }
        fields |= {"namespace": "default", "lane": chosen.choice(TEXTS["lane"])}
        fields |= {"route": "k|", "rid": rid, "input": nonce, "input_type": "text/plain", "input_bytes": 1}
        fields |= {"backoff_delay_ms": chosen.choice((0, 1_000)), "backoff_max_ms": 60_000}
        fields |= {"backoff_kind": chosen.choice((None, "fixed", "exponential", "other"))}
        fields |= {"backoff_multiplier": chosen.choice((1, 1.5, 1e15)), "retryable_categories": None}
        fields |= {"backoff_jitter": chosen.choice((None, True, False))}
        if chosen.random() < 0.2:
            wrong = (None, True, -1, 1.5, 2**60, float("nan"), float("inf"), "x", b"\xff", [1], {"a": 1})
            fields[chosen.choice(list(fields))] = chosen.choice(wrong)
        packed = b"".join(msgspec.msgpack.encode(value) for value in fields.values())
        return packed if chosen.random() < 0.9 else packed[: chosen.randrange(len(packed))]

    def _rest(self, parts: Sequence[str], subject: Subject) -> list[bytes]:
        chosen = self._random
        count = 5_000 if chosen.random() < 0.002 else chosen.choice((0, 1, 1, 2, 3, 10))
        return [self._part(part, subject) for _ in range(count) for part in parts]

    def _part(self, part: str, subject: Subject) -> bytes:
        match part:
            case "uuid":
                return mint_uuid().encode()
            case "holder":
                return f"default {self._random.choice(('w-1', 'v-1'))} {subject.uuid}".encode()
            case _:
                return self._random.choice(PARTS[part]).encode()


# Judging ----------------------------------------------------------------------------------------------------------


def _judge(name: str, vector: Vector, answer: Any, number: int, forgiven: tuple[str, ...]) -> bool:
    """Check that a call was answered; return whether it may have written."""
    where = f"{name}, vector {number}: {vector!r:.2000}"
    if isinstance(answer, Exception):
        assert forgiven and str(answer).startswith(forgiven), f"{answer} <- {where}"
        return False
    assert isinstance(answer, list), where
    assert len(answer) >= 3, where
    if answer[0] == 1:
        return True
    assert isinstance(answer[0], bytes), where
    code = answer[0].decode()
    if code not in WRITES_AND_REFUSES:
        return False
    functions = WRITES_AND_REFUSES[code]
    return functions is None or name in functions


def _fuzz(store: Store, names: Sequence[str], count: int, *forgiven: str, epoch: int = EPOCH) -> None:
    """Send vectors to functions in turn, each followed by a look at what its server has counted."""
    generators = [Generator(LIBRARY.functions[name], store) for name in names]
    order = random.Random(count)
    before: dict[Pipe, int] = {}
    for start in range(0, count, GROUP):
        if start % epoch == 0:
            store.restore()
            before = store.changes()
        # Every fifth group is of vectors that look right; of several functions half of them.
        is_plausible = (start // GROUP) % (5 if len(names) == 1 else 2) == 1
        chosen = [order.choice(generators) for _ in range(min(GROUP, count - start))]
        vectors = [maker.plausible() if is_plausible else maker.malformed() for maker in chosen]
        by_pipe: dict[Pipe, list[int]] = {}
        for at, (named, _) in enumerate(vectors):
            by_pipe.setdefault(store.pipe_of(named[0] if named else b"{w}"), []).append(at)
        for pipe, places in by_pipe.items():
            commands: list[tuple[bytes | int, ...]] = []
            for at in places:
                named, values = vectors[at]
                commands.append((b"FCALL", LIBRARY.names[chosen[at].name], len(named), *named, *values))
                commands.append(CHANGES)
            replies = pipe(commands)
            for at, answer, told in zip(places, replies[::2], replies[1::2], strict=True):
                name = chosen[at].name
                wrote = _judge(name, vectors[at], answer, start + at, forgiven)
                after = changes_of(told)
                assert wrote or after == before[pipe], (
                    f"{name}, vector {start + at} was answered with {answer!r:.300} and wrote: {vectors[at]!r:.2000}"
                )
                before[pipe] = after


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_answered_and_refusals_write_nothing(alone: Store, name: str) -> None:
    """No vector makes a function fail; a refused call leaves the store as it was."""
    _fuzz(alone, [name], VECTORS)


def test_every_call_is_answered_whatever_others_have_written(alone: Store) -> None:
    """What one function has accepted makes no other fail."""
    _fuzz(alone, NAMES, 3 * VECTORS, epoch=3_000)


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_answered_on_a_cluster(spread: Store, name: str) -> None:
    """On a cluster a call with keys of two slots is turned away by the server; every other one is answered."""
    _fuzz(spread, [name], CLUSTER_VECTORS, "CROSSSLOT", "MOVED")
