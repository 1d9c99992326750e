"""How durable an acknowledgement is: found from every primary, and waited for when a replica must have it.

No append-only file, or one that is flushed every second or by the system, promises nothing after a crash (`memory`);
`appendfsync always` promises what is on disk (`fsync`). With `?durability=replicated` in the URL every mutation is
followed by WAIT in the same pipeline, and one that no replica has confirmed is reported as an unknown outcome, which is
safe to repeat. What a user may not ask (ACL) counts as the weaker answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.contract.states import Durability

REPLICAS: Final = 1
"""How many replicas must confirm."""
WAIT_MS: Final = 1_000
"""How long an acknowledgement waits for a replica."""

_ORDER: Final = (Durability.MEMORY, Durability.FSYNC, Durability.REPLICATED)
_WINDOWS: Final = {
    None: "what the user may not ask is taken for the worse: allow CONFIG GET appendfsync",
    "everysec": "a crash loses up to about two seconds",
    "no": "a crash of the machine loses what the system had not written yet",
}


class Persistence(msgspec.Struct, frozen=True, kw_only=True):
    """What one primary does with writes."""

    address: str
    append_only: bool
    fsync: str | None
    """None: it does not tell."""
    replicas: int

    @property
    def level(self) -> Durability:
        """What an acknowledgement of this primary alone promises."""
        return Durability.FSYNC if self.append_only and self.fsync == "always" else Durability.MEMORY

    @property
    def window(self) -> str:
        """What a crash loses, in words."""
        if not self.append_only:
            return "nothing is written before the next snapshot: a crash loses it"
        return _WINDOWS.get(self.fsync, "acknowledged writes are on disk")


def persistence_of(
    address: str, config: Mapping[str, str], persistence: Mapping[str, str], replication: Mapping[str, str]
) -> Persistence:
    """Make out what a primary does with writes from CONFIG GET or, where that is forbidden, from INFO."""
    append_only = config.get("appendonly")
    return Persistence(
        address=address,
        append_only=append_only == "yes"
        if append_only is not None
        else persistence.get("aof_enabled") == "1",
        fsync=config.get("appendfsync"),
        replicas=int(replication.get("connected_slaves", "0")),
    )


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What acknowledgements of this store promise."""

    level: Durability
    window: str
    """What is lost in a crash, in words."""

    @property
    def waits(self) -> bool:
        """Whether each mutation waits for a replica."""
        return self.level is Durability.REPLICATED


def promise_of(primaries: Iterable[Persistence], asked: Durability | None) -> Promise:
    """Return what the weakest primary promises, or refuse what was asked.

    Raises: Misuse when less is found than was asked, Unavailable when replicas should confirm and a primary has none.
    """
    found = list(primaries)
    weakest = min(found, key=lambda primary: _ORDER.index(primary.level))
    if asked is Durability.REPLICATED:
        alone = [primary.address for primary in found if primary.replicas < REPLICAS]
        if alone:
            raise Unavailable(
                f"durability=replicated: {', '.join(alone)} has no connected replica that could confirm a write"
            )
        return Promise(
            level=Durability.REPLICATED, window="acknowledged writes are in a replica's memory too"
        )
    if asked is not None and _ORDER.index(weakest.level) < _ORDER.index(asked):
        raise Misuse(
            f"durability={asked.value}: {weakest.address} promises {weakest.level.value} ({weakest.window}); set "
            "appendonly yes and appendfsync always"
        )
    return Promise(level=weakest.level, window=weakest.window)


def parse_level(text: str) -> Durability:
    """Read the `durability` option of a URL.

    Raises: Misuse.
    """
    try:
        return Durability(text)
    except ValueError:
        raise Misuse("durability is memory, fsync or replicated") from None


def strongest(*levels: Durability | None) -> Durability | None:
    """Return the level that covers all of these; None: none was asked for."""
    asked = [level for level in levels if level is not None]
    return max(asked, key=_ORDER.index, default=None)


def confirmation(tag: str) -> tuple[Command, Command]:
    """Return what follows a mutation on its connection, in the same slot; the last reply counts the replicas.

    WAIT waits for what its own connection wrote. The write before it makes that everything up to now, so that a call
    which is repeated and finds its work done is confirmed too, whatever connection did the work.
    """
    return (("SET", f"{tag}{keys.CONFIRMED}", b""), ("WAIT", REPLICAS, WAIT_MS))
