"""Forward-only migrations: numbered files, applied once each, remembered with the checksum of what was applied.

How a file is applied is each backend's business; here is which files there are and which are still to be done. A
store that was migrated by a newer version, or by a file that has since changed, is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from flowfabric.backends import assets
from flowfabric.contract.errors import Corrupt, Misuse

_NAME: Final = re.compile(r"([0-9]{4})_([a-z][a-z0-9_]*)\.sql")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One step from one schema to the next."""

    number: int
    name: str
    checksum: str
    """SHA-256 of its text."""
    text: str


class MigrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What bringing a store up to date did, or would do."""

    store: str
    """Its URL, without credentials."""
    done: bool
    """False: this is a plan, nothing was changed."""
    is_new: bool = False
    """The store is made."""
    steps: tuple[str, ...] = ()
    """The migrations, by number and name."""
    replaces_functions: bool = False
    """The store's functions are replaced by those of this version."""
    granted: tuple[str, ...] = ()
    """Roles that may use the store from now on."""
    when_opened: bool = False
    """A store of this kind is brought up to date whenever it is opened: there is nothing else to do."""


def read(package: str, folder: str) -> tuple[Migration, ...]:
    """Return the migrations of a package, numbered from 1 without gaps."""
    found: list[Migration] = []
    for name in assets.names(package, folder):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{folder}/{name}: migrations are called NNNN_name.sql")
        text = assets.text(package, f"{folder}/{name}")
        found.append(
            Migration(
                number=int(match[1]),
                name=match[2],
                checksum=hashlib.sha256(text.encode()).hexdigest(),
                text=text,
            )
        )
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"{folder}: migrations are numbered from 0001 without gaps")
    return tuple(found)


def newer(schema: int, known: int) -> Misuse:
    """Build the error about a store that a newer version migrated."""
    return Misuse(
        f"the store was written by a newer FlowFabric (schema {schema}, this one knows {known}): upgrade "
        "FlowFabric, or open another store",
        schema=schema,
        known=known,
    )


def pending(known: Sequence[Migration], applied: Mapping[int, str]) -> tuple[Migration, ...]:
    """Return what is still to be applied, given the checksums of what was.

    Raises: Misuse when more was applied than is known, Corrupt when a file differs from what was applied.
    """
    if applied and max(applied) > len(known):
        raise newer(max(applied), len(known))
    for step in known[: len(applied)]:
        if applied.get(step.number) != step.checksum:
            raise Corrupt(
                f"migration {step.number} ({step.name}) of this store differs from the one known here"
            )
    return tuple(known[len(applied) :])
