"""The floor for Valkey: the commands that a drain makes the server execute, sent by themselves.

A drain is recorded with MONITOR on a copy of a filled store. Of each call it keeps the writes, and the reads that carry
an input to the worker; the logic around them, and what it reads to decide, is left out. Then the same commands, with
the same keys and bytes, are sent to the other copy through the same client in the same pipelines: as many claims in
flight, each after the hints it takes, completions beside the next claim.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from bench.drain import Work, fill, run_slots
from bench.servers import Build, Monitor, Valkey, best_build, cores
from bench.stores import VALKEY, Place, place
from flowfabric.backends import connect
from flowfabric.backends.valkey.wire import Client, Command, connect as connect_wire, parse_url

READS: Final = frozenset(
    b"EXISTS GET HEXISTS HGET HGETALL HKEYS HLEN HMGET HVALS LLEN PTTL TIME TTL ZCARD ZCOUNT ZMSCORE ZRANGE "
    b"ZRANGEBYLEX ZRANGEBYSCORE ZSCORE".split()
)
_LINE: Final = re.compile(rb'\+\d+\.\d+ \[\d+ ([^\]]+)\] "([A-Za-z|]+)"(.*)', re.DOTALL)
_ARGUMENT: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_NAMED: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
_FUNCTION: Final = re.compile(rb"ff_[0-9a-f]+_([a-z_]+)")


async def bare(store: str, tasks: int, slots: int, size: int, most: int) -> dict[str, Any]:
    """Send what a drain writes, without the drain."""
    assert store == VALKEY
    build = best_build()
    assert build is not None
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, tasks, size)
        await backend.close()
        (filled,) = where.nodes
        filled.stop()
        calls, claims = await _record(build, filled.folder, tasks, slots, size, most)
        with Valkey(build, folder=filled.folder, core=_last_core()) as server:
            return await _replay(
                Place(VALKEY, f"valkey://{server.name}/0", [server]), calls, claims, tasks, slots // most
            )


# Recording --------------------------------------------------------------------------------------------------------


async def _record(
    build: Build, filled: Path, tasks: int, slots: int, size: int, most: int
) -> tuple[dict[str, list[list[Command]]], int]:
    """Drain a copy; return the commands of each call, by function, and how many claims there were."""
    folder = Path(tempfile.mkdtemp(prefix="ff-bench-"))
    await asyncio.to_thread(shutil.copytree, filled, folder, dirs_exist_ok=True)
    with Valkey(build, folder=folder) as server:
        backend = await connect(f"valkey://{server.name}/0")
        work = Work(tasks)
        with tempfile.TemporaryFile() as tape:
            monitor = Monitor(server, tape.write)
            await run_slots(backend, work, slots, most, size)
            await asyncio.to_thread(monitor.stop)
            await backend.close()
            tape.seek(0)
            return _calls(tape), work.claims


def _calls(tape: IO[bytes]) -> dict[str, list[list[Command]]]:
    """Read a tape: for each function, the commands of each of its calls, staged payloads first."""
    found: dict[str, list[list[Command]]] = {}
    staged: list[Command] = []
    current: list[Command] = []
    for line in tape:
        match = _LINE.match(line)
        if match is None:
            continue
        source, name, rest = match.groups()
        name = name.upper()
        if source == b"lua":
            if name not in READS or _delivers(name, rest):
                current.append(_command(name, rest))
        elif name == b"SET":
            staged.append(_command(name, rest))
        elif name.startswith(b"FCALL"):
            called = _FUNCTION.search(rest[:100])
            current = staged
            staged = []
            found.setdefault(called[1].decode() if called else "", []).append(current)
    return found


def _delivers(name: bytes, rest: bytes) -> bool:
    """Say whether a read carries to the worker what it gets with a lease."""
    return (name == b"GET" and b"}:p:" in rest[:40]) or (name == b"HMGET" and b' "i"' in rest)


def _command(name: bytes, rest: bytes) -> Command:
    return (
        name,
        *(_ESCAPE.sub(_unescape, text) if b"\\" in text else text for text in _ARGUMENT.findall(rest)),
    )


def _unescape(match: re.Match[bytes]) -> bytes:
    text = match[1]
    return bytes([int(text[1:], 16)]) if len(text) == 3 else _NAMED.get(text, text)


# Replaying --------------------------------------------------------------------------------------------------------


async def _replay(
    where: Place, calls: dict[str, list[list[Command]]], claims: int, tasks: int, loops: int
) -> dict[str, Any]:
    """Send the calls as `claims` steps by `loops` callers."""
    taking = [call for name, found in calls.items() if name.startswith("hints_") for call in found]
    claiming, completing = calls.get("lease_claim", []), calls.get("execution_complete", [])
    completed = sum(command[0] == b"HSET" for call in completing for command in call)
    if completed < tasks:
        raise RuntimeError(f"the tape has {completed} of {tasks} completions")
    client = await connect_wire(parse_url(where.url))
    steps = iter(range(claims))

    async def one_after_the_other(step: int) -> None:
        await _send(client, _part(taking, step, claims))
        await _send(client, _part(claiming, step, claims))

    async def caller() -> None:
        before: Sequence[list[Command]] = ()
        for step in steps:
            await asyncio.gather(_send(client, before), one_after_the_other(step))
            before = _part(completing, step, claims)
        await _send(client, before)

    meter = where.meter().start()
    await asyncio.gather(*(caller() for _ in range(loops)))
    meter.stop()
    await client.close()
    sent = sum(len(call) for found in (taking, claiming, completing) for call in found)
    return meter.figures(tasks, commands_per_task=sent / tasks)


def _part(calls: list[list[Command]], step: int, steps: int) -> Sequence[list[Command]]:
    return calls[step * len(calls) // steps : (step + 1) * len(calls) // steps]


async def _send(client: Client, calls: Sequence[list[Command]]) -> None:
    await asyncio.gather(*(client.execute(0, call) for call in calls if call))


def _last_core() -> int | None:
    found = cores()
    return found[-1] if found else None
