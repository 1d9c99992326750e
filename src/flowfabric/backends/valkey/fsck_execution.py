"""Checking executions of one partition: each one's fields against each other, and against its index entries.

An execution is read in a few steps while the store is in use. What disagrees counts only when the execution did not
change between the first step and one more after the last; otherwise it is looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.invariants import (
    Problem,
    check_attempts,
    check_events,
    check_frames,
    check_record,
)
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.frames import Header, keys_of
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.record import (
    FIELDS,
    Packed,
    Static,
    decode,
    event_of,
    static_of,
    stream_of,
    superseded_of,
    unpack,
)
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import Loaded
from flowfabric.contract.indexing import IndexEntries, index_entries
from flowfabric.contract.states import FrameMode

FRAMES_AT_ONCE: Final = 200
TRIES: Final = 8
"""How often an execution that keeps changing is looked at."""
_PAYLOADS: Final = (b"i", b"r")
_NUMBERED: Final = re.compile(rb"([aesyz])([0-9]+)")


class Entry(msgspec.Struct, frozen=True):
    """An index entry that an execution should have or not, and what is there."""

    key: str
    member: str
    should: float | None
    found: float | None

    @property
    def is_right(self) -> bool:
        """It is what it should be."""
        return self.should == self.found


class Checked(msgspec.Struct, kw_only=True):
    """What was found out about one execution."""

    uuid: str
    exists: bool = False
    attempts: int = 0
    frames: int = 0
    rid: str | None = None
    nonces: tuple[str, ...] = ()
    entries: list[Entry] = []
    wrong: list[str] = []
    """Index entries that disagree with the record, in words."""
    problems: list[Problem] = []
    """Everything else."""

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong with it."""
        return not self.wrong and not self.problems


class _Reading(msgspec.Struct):
    """One execution as it is being read."""

    checked: Checked
    fields: list[Any]
    names: list[bytes]
    loaded: Loaded | None = None
    packed: Packed | None = None
    static: Static | None = None
    commands: list[tuple[Callable[[Any], None], Command]] = []
    rest: dict[bytes, bytes] = {}
    ttls: dict[str, int] = {}
    entries: IndexEntries | None = None


class ExecutionChecks:
    """Checks executions of one partition."""

    def __init__(self, calls: Calls, partition: Partition) -> None:
        self._calls = calls
        self._partition = partition

    async def check(self, uuids: Sequence[str]) -> list[Checked]:
        """Check executions; those that changed meanwhile and looked wrong are looked at again, one by one."""
        if not uuids:
            return []
        checked, stable = await self._check_once(uuids)
        for at, found in enumerate(checked):
            if not found.is_sound and not stable[at]:
                checked[at] = await self._check_again(found.uuid)
        return checked

    async def _check_again(self, uuid: str) -> Checked:
        for _ in range(TRIES):
            (found,), (stable,) = await self._check_once([uuid])
            if stable or found.is_sound:
                return found
        # It never stood still: nothing can be said about it, and whoever changes it checks it, too.
        return Checked(uuid=uuid, exists=True)

    async def _check_once(self, uuids: Sequence[str]) -> tuple[list[Checked], list[bool]]:
        """Check executions and say of each whether it stood still while it was read."""
        before = await self._read_heads(uuids)
        readings = [
            _Reading(Checked(uuid=uuid, exists=fields[0] is not None), fields, list(names))
            for uuid, (fields, names) in zip(uuids, before, strict=True)
        ]
        for reading in readings:
            self._decode(reading)
        await self._run([reading for reading in readings if reading.loaded is not None])
        for reading in readings:
            if reading.loaded is not None:
                await self._conclude(reading)
        if all(reading.checked.is_sound for reading in readings):
            return [reading.checked for reading in readings], [True] * len(readings)
        after = await self._read_heads(uuids)
        streams = await self._read_streams(readings)
        return (
            [reading.checked for reading in readings],
            [
                was == now and all(reading.rest.get(name) == value for name, value in found.items())
                for reading, was, now, found in zip(readings, before, after, streams, strict=True)
            ],
        )

    # Reading ------------------------------------------------------------------------------------------------------

    async def _read_heads(self, uuids: Sequence[str]) -> list[tuple[list[Any], set[bytes]]]:
        commands: list[Command] = []
        for uuid in uuids:
            key = self._partition.execution(uuid)
            commands += [("HMGET", key, *FIELDS), ("HKEYS", key)]
        found = await self._calls.read(self._partition, commands)
        return [(fields, set(names)) for fields, names in zip(found[::2], found[1::2], strict=True)]

    async def _read_streams(self, readings: Sequence[_Reading]) -> list[dict[bytes, bytes]]:
        """Read the records of streams once more: they change without the rest of the execution."""
        asked = [
            (at, [name for name in reading.rest if name[:1] == b"s"]) for at, reading in enumerate(readings)
        ]
        asked = [(at, names) for at, names in asked if names]
        found: list[dict[bytes, bytes]] = [{} for _ in readings]
        if asked:
            replies = await self._calls.read(
                self._partition,
                [
                    ("HMGET", self._partition.execution(readings[at].checked.uuid), *names)
                    for at, names in asked
                ],
            )
            for (at, names), values in zip(asked, replies, strict=True):
                found[at] = dict(zip(names, values, strict=True))
        return found

    def _decode(self, reading: _Reading) -> None:
        """Decode an execution and note what else must be read of it."""
        checked, fields = reading.checked, reading.fields
        if not checked.exists:
            if reading.names:
                checked.exists = True
                checked.problems.append(("S9 legal state", "it has no record"))
            return
        if fields[1] is None or fields[2] is None:
            checked.problems.append(("S5 one create, one record", "its definition is missing"))
            return
        try:
            reading.loaded = decode(fields)
            reading.packed = unpack(fields[0], Packed)
            reading.static = unpack(fields[1], Static)
        except (Corrupt, ValueError, IndexError, msgspec.MsgspecError) as error:
            checked.problems.append(("S9 legal state", f"its record cannot be read: {error}"))
            return
        if reading.loaded is None:
            return
        checked.rid = reading.static.rid
        reading.entries = index_entries(reading.loaded.definition, reading.loaded.record)
        nonces = [nonce for nonce in (reading.static.input, reading.packed.result) if nonce]
        checked.nonces = tuple(nonces)
        for nonce in nonces:
            command: Command = ("PTTL", self._partition.payload(nonce))
            reading.commands.append((_ttl_of(reading, nonce), command))
        for key, member, should in self._entries(reading):
            reading.commands.append((_entry_of(checked, key, member, should), ("ZSCORE", key, member)))
        rest = [name for name in reading.names if name.decode() not in FIELDS and name not in _PAYLOADS]
        if rest:
            key = self._partition.execution(checked.uuid)
            reading.commands.append((_rest_of(reading, rest), ("HMGET", key, *rest)))

    def _entries(self, reading: _Reading) -> Iterator[tuple[str, str, float | None]]:
        """Yield the index entries that must and must not be there: key, member, score."""
        partition, uuid = self._partition, reading.checked.uuid
        assert reading.loaded is not None and reading.static is not None and reading.entries is not None
        record, should = reading.loaded.record, reading.entries
        score = record.eligible_since_ms - record.priority * 1e12 if should.ready else None
        yield partition.eligible(reading.static.rid), uuid, score
        yield partition.due, uuid, should.due_at_ms
        yield partition.lost, uuid, should.lost_at_ms
        yield partition.all, uuid, reading.loaded.definition.created_at_ms
        if should.holder is not None:
            yield partition.own, f"{should.holder} {uuid}", 0

    async def _run(self, readings: Sequence[_Reading]) -> None:
        commands = [item for reading in readings for item in reading.commands]
        if commands:
            replies = await self._calls.read(self._partition, [command for _, command in commands])
            for (take, _), found in zip(commands, replies, strict=True):
                take(found)

    # Judging ------------------------------------------------------------------------------------------------------

    async def _conclude(self, reading: _Reading) -> None:
        checked, loaded, packed, static = reading.checked, reading.loaded, reading.packed, reading.static
        assert loaded is not None and packed is not None and static is not None
        checked.attempts = loaded.record.total_attempt_count
        _check_entries(reading)
        problems = checked.problems
        problems += _check_definition(reading, self._partition)
        problems += _check_payloads(reading)
        problems += check_record(loaded, has_result=_has_result(reading))
        try:
            numbered = _numbered(reading.rest)
            problems += _check_attempts(loaded, reading.rest, numbered)
            problems += _check_events(loaded, numbered[b"e"])
            await self._check_streams(reading, numbered)
        except (Corrupt, ValueError, msgspec.MsgspecError) as error:
            problems.append(("S9 legal state", f"a part of it cannot be read: {error}"))

    async def _check_streams(self, reading: _Reading, numbered: Mapping[bytes, Mapping[int, bytes]]) -> None:
        checked, loaded = reading.checked, reading.loaded
        assert loaded is not None
        expiries: list[int] = []
        for index, data in sorted(numbered[b"s"].items()):
            stream = stream_of(data)
            if stream is None:
                continue
            if index >= checked.attempts:
                checked.problems.append(
                    ("S20 frames have an attempt", f"a stream of attempt {index}, which is none")
                )
            if stream.version > 0 and index not in numbered[b"y"]:
                checked.problems.append(
                    ("S20 frames are counted", f"attempt {index}: its summary document is missing")
                )
            if stream.expires_at_ms is not None:
                expiries.append(stream.expires_at_ms)
            frames = await self._outline(checked.uuid, index)
            count, problems = check_frames(index, stream, frames)
            checked.frames += count
            checked.problems += problems
        due_ms = loaded.record.stream_due_at_ms
        if expiries and (due_ms is None or due_ms > min(expiries)):
            checked.problems.append(
                ("S10 stream and row agree", "a stream expires, and the record does not say so")
            )

    async def _outline(self, uuid: str, attempt_index: int) -> list[tuple[int, int, int, FrameMode]]:
        """Read the ids, numbers and modes of an attempt's frames, without payloads."""
        partition = self._partition
        frames: list[tuple[int, int, int, FrameMode]] = []
        unread = dict.fromkeys(keys_of(partition, uuid, attempt_index).items(), "-")
        while unread:
            # Each native stream goes on from where it was; all in one call while they begin.
            after = next(iter(unread.values()))
            asked = {mode: key for (mode, key), place in unread.items() if place == after}
            (outlines,) = await self._calls.call(
                partition,
                "stream_outline",
                [partition.execution(uuid), *asked.values()],
                after=after,
                most=FRAMES_AT_ONCE,
            )
            for mode, found in zip(FrameMode, outlines, strict=True):
                if mode not in asked:
                    continue
                for frame_id, header in zip(found[::2], found[1::2], strict=True):
                    ms, seq = (int(part) for part in frame_id.split(b"-"))
                    frames.append((ms, seq, unpack(header, Header).sequence, mode))
                source = (mode, asked[mode])
                if len(found) < 2 * FRAMES_AT_ONCE:
                    del unread[source]
                else:
                    unread[source] = f"({found[-2].decode()}"
        return sorted(frames, key=lambda frame: frame[:2])


def _ttl_of(reading: _Reading, nonce: str) -> Callable[[Any], None]:
    def take(found: Any) -> None:
        reading.ttls[nonce] = found

    return take


def _entry_of(checked: Checked, key: str, member: str, should: float | None) -> Callable[[Any], None]:
    def take(found: Any) -> None:
        checked.entries.append(Entry(key, member, should, found))

    return take


def _rest_of(reading: _Reading, names: Sequence[bytes]) -> Callable[[Any], None]:
    def take(found: Any) -> None:
        reading.rest = {name: value for name, value in zip(names, found, strict=True) if value is not None}

    return take


def _check_entries(reading: _Reading) -> None:
    checked, packed, should = reading.checked, reading.packed, reading.entries
    assert packed is not None and should is not None
    for entry in checked.entries:
        if not entry.is_right:
            index = entry.key.partition("}:")[2]
            checked.wrong.append(
                f"its entry in {index} is {_shown(entry.found)}, should be {_shown(entry.should)}"
            )
    if (packed.due_kind, packed.due_at_ms) != (should.due_kind, should.due_at_ms):
        checked.wrong.append(
            f"its timer is {packed.due_kind} at {packed.due_at_ms}, should be {should.due_kind} at {should.due_at_ms}"
        )


def _shown(score: float | None) -> str:
    return "missing" if score is None else f"{score:.0f}"


def _check_definition(reading: _Reading, partition: Partition) -> Iterator[Problem]:
    """Compare what functions read of the definition with the definition."""
    assert reading.loaded is not None and reading.static is not None
    definition, static = reading.loaded.definition, reading.static
    if definition.execution_id != partition.tag + reading.checked.uuid:
        yield "S5 one create, one record", f"its definition is that of {definition.execution_id}"
    rid = keys.route_id(definition.namespace, definition.lane, definition.route)
    if static != static_of(definition, rid, static.input, static.input_type, static.input_bytes):
        yield (
            "S10 index and record agree (definition)",
            "what functions read of its definition differs from it",
        )


def _check_payloads(reading: _Reading) -> Iterator[Problem]:
    assert reading.static is not None and reading.packed is not None
    if reading.static.input is None and b"i" not in reading.names:
        yield "S5 one create, one record", "its input is missing"
    for nonce, ttl_ms in reading.ttls.items():
        is_input = nonce == reading.static.input
        invariant = "S5 one create, one record" if is_input else "S6 results"
        name = "input" if is_input else "result"
        if ttl_ms == -2 and is_input:
            yield invariant, "its input is missing"
        elif ttl_ms >= 0:
            yield invariant, f"its {name} is about to expire"


def _has_result(reading: _Reading) -> bool:
    """Say whether a result is stored."""
    assert reading.packed is not None
    nonce = reading.packed.result
    if not nonce:
        # A result that was cleared leaves an empty field.
        return nonce is not None and b"r" in reading.names
    return reading.ttls.get(nonce, -2) != -2


def _numbered(rest: Mapping[bytes, bytes]) -> dict[bytes, dict[int, bytes]]:
    """Return the fields that are numbered by letter and number."""
    found: dict[bytes, dict[int, bytes]] = {letter: {} for letter in (b"a", b"e", b"s", b"y", b"z")}
    for name, value in rest.items():
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            found[match[1]][int(match[2])] = value
    return found


def _check_attempts(
    loaded: Loaded, rest: Mapping[bytes, bytes], numbered: Mapping[bytes, Mapping[int, bytes]]
) -> Iterator[Problem]:
    stored = [
        (index, superseded_of(data, numbered[b"z"].get(index)))
        for index, data in sorted(numbered[b"a"].items())
    ]
    for index, attempt in stored:
        if rest.get(f"n{attempt.attempt_id}".encode()) != str(index).encode():
            yield "S8 attempts are numbered", f"attempt {index} is not found by its id"
    yield from check_attempts(loaded, stored)


def _check_events(loaded: Loaded, stored: Mapping[int, bytes]) -> Iterator[Problem]:
    count = loaded.record.history_count
    numbers = sorted(stored)
    least = min(count, limits.HISTORY_KEPT)
    if len(numbers) < least or numbers != list(range(count - len(numbers) + 1, count + 1)):
        yield "S20 events are ordered", f"{len(numbers)} events are stored, {count} were written"
    yield from check_events(loaded, ((number, event_of(number, stored[number])) for number in numbers))
