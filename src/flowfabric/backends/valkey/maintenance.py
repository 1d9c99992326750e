"""What operators do to a store in Valkey: check it. Copying it is the servers' own business."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flowfabric.backends.valkey.fsck import Fsck
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.backend import BackupReport, FsckReport
from flowfabric.contract.errors import Misuse


class ValkeyMaintenance:
    """Backup and fsck."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def fsck(
        self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> FsckReport:
        """Check every stored invariant; with `repair`, rebuild index entries that disagree with their record."""
        return await Fsck(self._store, repair=repair, progress=progress).run()

    async def backup(
        self, destination: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> BackupReport:
        """Refuse: no client can copy a store of several servers at one instant.

        Raises: Misuse, with what to do instead.
        """
        del progress
        raise Misuse(
            f"a Valkey store is not copied to {destination}: back up its servers",
            next="on each primary run BGSAVE and, when LASTSAVE has moved on, copy its dump file (CONFIG GET dir and "
            "dbfilename); with appendonly yes copy the directory appenddirname instead. Restore by starting servers "
            "on the copies, then run flowfabric admin fsck",
        )
