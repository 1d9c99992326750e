"""Checking every key there is, for what belongs to nothing, and the records that belong to no partition.

The keys are scanned on each primary, whatever their partition. What looks stray is looked at once more before it is
reported: executions come and go meanwhile.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.findings import REPAIRABLE, Findings
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls, failed
from flowfabric.backends.valkey.catalog import StoredLane
from flowfabric.backends.valkey.fsck_execution import Checked, ExecutionChecks
from flowfabric.backends.valkey.fsck_markers import marker_of
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.record import Packed, Static, unpack
from flowfabric.backends.valkey.scatter import scatter
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.wire import ServerError
from flowfabric.backends.valkey.worker import StoredWorker
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.states import LaneState

KEYS_AT_ONCE: Final = 500
_OURS: Final = "{[fw]*"
_PARTITION_KEY: Final = re.compile(rb"\{fp:([0-9]{1,5})\}:(.*)", re.DOTALL)
_STREAM: Final = re.compile(r"s[dsb]:([0-9a-f-]{36}):([0-9]{1,7})")
_WORKERS: Final = keys.workers("").encode()
_SINGLE: Final = frozenset({"due", "own", "lost", "all", "lanes", keys.CONFIRMED})


class IndexChecks(Protocol):
    """Checks executions and indexes, and reports them."""

    async def report(self, partition: Partition, checked: Checked) -> None:
        """Report an execution."""
        ...

    async def check_eligible(self, partition: Partition, key: str) -> None:
        """Check an eligible index, unless it has been."""
        ...


class StoredKey(msgspec.Struct, frozen=True):
    """An idempotency entry as functions write it."""

    uuid: str
    digest: str
    expires_at_ms: int


class KeyChecks:
    """One pass over all keys."""

    def __init__(self, store: Store, findings: Findings, indexes: IndexChecks) -> None:
        self._store = store
        self._calls: Calls = store.calls
        self._findings = findings
        self._indexes = indexes
        self._namespaces: set[str] = set()
        self._strays: defaultdict[int, list[str]] = defaultdict(list)
        """Nonces of payloads that no execution seen so far names, by partition."""
        self._unlisted: set[str] = set()
        """Nonces of payloads of executions that are not listed."""

    async def run(self, payloads: array[int]) -> None:
        """Check all keys; `payloads` are the marks of those that executions name."""
        named = array("Q", sorted(payloads))
        for node in self._store.client.primaries():
            cursor = 0
            while True:
                (reply,) = await self._store.client.on_node(
                    node, [("SCAN", cursor, "MATCH", _OURS, "COUNT", KEYS_AT_ONCE)], repeatable=True
                )
                if isinstance(reply, ServerError):
                    raise failed(reply)
                if not isinstance(reply, list):
                    raise Corrupt("a scan answered with something else than a list")
                cursor, found = int(reply[0]), reply[1]  # pyright: ignore[reportArgumentType]
                await self._check_keys(found, named)  # pyright: ignore[reportArgumentType]
                if cursor == 0:
                    break
        for number, nonces in self._strays.items():
            await self._check_payloads(self._store.partitions.all[number], nonces)
        await self._check_workers()
        await self._check_lanes()

    # Keys of partitions -------------------------------------------------------------------------------------------

    async def _check_keys(self, found: Sequence[bytes], named: array[int]) -> None:
        by_partition: defaultdict[int, list[str]] = defaultdict(list)
        for key in found:
            match = _PARTITION_KEY.fullmatch(key)
            if match is not None:
                by_partition[int(match[1])].append(match[2].decode("utf-8", "replace"))
            elif key.startswith(_WORKERS):
                self._namespaces.add(key[len(_WORKERS) :].decode("utf-8", "replace"))
        every = self._store.partitions.all
        await asyncio.gather(
            *(
                self._check_partition(every[number], names, named)
                for number, names in by_partition.items()
                if number < len(every)
            )
        )
        for number in by_partition:
            if number >= len(every):
                self._findings.add(
                    "S24 retention removes everything",
                    f"partition {number}",
                    "the store has no such partition",
                )

    async def _check_partition(self, partition: Partition, names: Sequence[str], named: array[int]) -> None:
        executions: list[str] = []
        streams: list[str] = []
        entries: list[str] = []
        for name in names:
            kind, _, rest = name.partition(":")
            match kind:
                case "x":
                    executions.append(rest)
                case "p":
                    if not _is_in(named, marker_of(partition, rest)):
                        self._strays[partition.number].append(rest)
                case "q":
                    await self._indexes.check_eligible(partition, partition.tag + name)
                case "k":
                    entries.append(rest)
                case "sd" | "ss" | "sb":
                    streams.append(name)
                case _ if name in _SINGLE:
                    pass
                case _:
                    self._findings.add(
                        "S24 retention removes everything", partition.tag + name, "it belongs to nothing"
                    )
        await self._check_executions(partition, executions)
        await self._check_streams(partition, streams)
        await self._check_idempotency(partition, entries)

    async def _check_executions(self, partition: Partition, uuids: Sequence[str]) -> None:
        """Check executions that the partition's index of all does not name."""
        if not uuids:
            return
        known = await self._calls.read(partition, [("ZSCORE", partition.all, uuid) for uuid in uuids])
        missing = [uuid for uuid, score in zip(uuids, known, strict=True) if score is None]
        for checked in await ExecutionChecks(self._calls, partition).check(missing):
            self._unlisted.update(checked.nonces)
            if checked.exists and not checked.is_sound:
                await self._indexes.report(partition, checked)

    async def _check_streams(self, partition: Partition, names: Sequence[str]) -> None:
        places = [(name, _STREAM.fullmatch(name)) for name in names]
        asked = [(name, match[1], match[2]) for name, match in places if match is not None]
        if not asked:
            return
        known = await self._calls.read(
            partition, [("HEXISTS", partition.execution(uuid), f"s{index}") for _, uuid, index in asked]
        )
        strays = [item for item, has in zip(asked, known, strict=True) if not has]
        for name, uuid, index in strays:
            # It may have been removed with its execution meanwhile.
            has, still = await self._calls.read(
                partition,
                [
                    ("HEXISTS", partition.execution(uuid), f"s{index}"),
                    ("EXISTS", partition.tag + name),
                ],
            )
            if still and not has:
                self._findings.add(
                    "S20 frames have a stream",
                    partition.tag + uuid,
                    f"frames of attempt {index} belong to no stream",
                )

    async def _check_idempotency(self, partition: Partition, hashes: Sequence[str]) -> None:
        """Check that entries name executions that were created so. An entry outlives its execution."""
        if not hashes:
            return
        stored = await self._calls.read(partition, [("GET", partition.idempotency(name)) for name in hashes])
        entries: list[tuple[str, StoredKey]] = []
        for name, data in zip(hashes, stored, strict=True):
            if data is None:
                continue
            try:
                entries.append((name, _decode_key(data)))
            except msgspec.MsgspecError:
                self._report_key(partition, name, "it cannot be read")
        found = (
            await self._calls.read(
                partition, [("HMGET", partition.execution(entry.uuid), "v", "j") for _, entry in entries]
            )
            if entries
            else []
        )
        for (name, entry), fields in zip(entries, found, strict=True):
            if any(field is None for field in fields):
                continue
            try:
                created_at_ms = unpack(fields[0], Packed).created_at_ms
                definition = decode_definition(fields[1], created_at_ms)
            except Corrupt:
                # Reported with the execution.
                continue
            key = definition.idempotency_key
            if (
                definition.digest != entry.digest
                or key is None
                or keys.idempotency_hash(definition.namespace, key) != name
            ):
                self._report_key(
                    partition, entry.uuid, "its execution was created under another key or content"
                )

    def _report_key(self, partition: Partition, name: str, message: str) -> None:
        self._findings.add("S5 one create, one record", f"idempotency key of {partition.tag}{name}", message)

    async def _check_payloads(self, partition: Partition, nonces: Sequence[str]) -> None:
        """Report payloads that are kept and that no execution names, after reading once more what executions name."""
        ttls = await self._calls.read(partition, [("PTTL", partition.payload(nonce)) for nonce in nonces])
        kept = {nonce for nonce, ttl_ms in zip(nonces, ttls, strict=True) if ttl_ms == -1}
        kept -= self._unlisted
        cursor = 0
        while kept:
            (reply,) = await self._calls.read(
                partition, [("ZSCAN", partition.all, cursor, "COUNT", KEYS_AT_ONCE)]
            )
            cursor, members = int(reply[0]), reply[1][::2]
            stored = (
                await self._calls.read(
                    partition,
                    [("HMGET", partition.execution(member.decode()), "v", "d") for member in members],
                )
                if members
                else []
            )
            for fields in stored:
                if None not in fields:
                    kept.difference_update(_payloads_of(*fields))
            if cursor == 0:
                break
        left = sorted(kept)
        still = (
            await self._calls.read(partition, [("PTTL", partition.payload(nonce)) for nonce in left])
            if left
            else []
        )
        for nonce, ttl_ms in zip(left, still, strict=True):
            if ttl_ms == -1:
                self._findings.add(
                    "S24 retention removes everything",
                    partition.payload(nonce),
                    "a payload that no execution names",
                )

    # Global records -----------------------------------------------------------------------------------------------

    async def _check_workers(self) -> None:
        (due,) = await self._calls.read(None, [("ZRANGE", keys.WORKER_DUE, 0, -1, "WITHSCORES")])
        scores: dict[str, float] = {member.decode("utf-8", "replace"): score for member, score in due}
        for namespace in sorted(self._namespaces | {member.partition(" ")[0] for member in scores}):
            (stored,) = await self._calls.read(None, [("HGETALL", keys.workers(namespace))])
            instances = {name.decode("utf-8", "replace"): data for name, data in stored.items()}
            listed = {member.partition(" ")[2] for member in scores if member.partition(" ")[0] == namespace}
            for instance in sorted(listed | set(instances)):
                if not _agree(instances.get(instance), scores.get(f"{namespace} {instance}")):
                    await self._recheck_worker(namespace, instance)

    async def _recheck_worker(self, namespace: str, instance: str) -> None:
        data, score, again = await self._calls.read(
            None,
            [
                ("HGET", keys.workers(namespace), instance),
                ("ZSCORE", keys.WORKER_DUE, f"{namespace} {instance}"),
                ("HGET", keys.workers(namespace), instance),
            ],
        )
        if data == again and not _agree(data, score):
            self._findings.add(
                REPAIRABLE, f"worker {namespace}/{instance}", "its record and its timer disagree"
            )

    async def _check_lanes(self) -> None:
        """Check that no partition lets through what a lane's state does not, and that all know the latest state."""
        (stored,) = await self._calls.read(None, [("HGETALL", keys.LANES)])
        lanes = {name.decode(): unpack(data, StoredLane) for name, data in stored.items()}
        every = self._store.partitions.all
        copies = await scatter(
            self._calls, [(partition, ("HGETALL", partition.lanes)) for partition in every]
        )
        behind: set[str] = set()
        for copy in copies:
            for name, lane in lanes.items():
                state = copy.get(name.encode(), LaneState.ACTIVE.value.encode()).decode()
                version = int(copy.get(f"@{name}".encode(), b"0"))
                if lane.copied == lane.version and version == lane.version and state != lane.state.value:
                    behind.add(name)
            unknown = {name.decode() for name in copy if not name.startswith(b"@")} - set(lanes)
            behind |= unknown
        for name in sorted(behind):
            self._findings.add(
                "S10 index and record agree (lanes)",
                f"lane {name}",
                "a partition's copy of its state is not its state",
            )


def _is_in(sorted_marks: array[int], mark: int) -> bool:
    at = bisect_left(sorted_marks, mark)
    return at < len(sorted_marks) and sorted_marks[at] == mark


def _payloads_of(v: bytes, d: bytes) -> tuple[str, ...]:
    """Return the payloads that an execution names."""
    try:
        return unpack(v, Packed).result or "", unpack(d, Static).input or ""
    except Corrupt:
        # Reported with the execution.
        return ()


def _decode_key(data: bytes) -> StoredKey:
    return msgspec.convert(
        dict(
            zip(
                StoredKey.__struct_fields__,
                msgspec.msgpack.decode(b"\x93" + data, type=tuple[str, str, int]),
                strict=True,
            )
        ),
        StoredKey,
    )


def _agree(data: Any, score: float | None) -> bool:
    """Say whether a worker's record and its timer agree."""
    if data is None or score is None:
        return data is None and score is None
    worker = unpack(data, StoredWorker)
    lapsed = worker.lapsed_at_ms
    return score == (
        lapsed + limits.WORKER_KEPT_AFTER_LAPSE_MS if lapsed is not None else worker.expires_at_ms
    )
