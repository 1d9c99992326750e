"""What operators do to a store in Postgres: check it. Copying it is the server's own business."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flowfabric.backends.postgres.fsck import Fsck
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.backend import BackupReport, FsckReport
from flowfabric.contract.errors import Misuse


class PostgresMaintenance:
    """Backup and fsck."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def fsck(
        self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> FsckReport:
        """Check every stored invariant; with `repair`, rebuild index entries that disagree with their record.

        It reads with the rights of whoever opened the store, and repairs with the right to write its tables.
        """
        return await Fsck(self._store, repair=repair, progress=progress).run()

    async def backup(
        self, destination: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> BackupReport:
        """Refuse: the server's own tools copy it consistently, with its roles and rights, and can restore it.

        Raises: Misuse, with what to do instead.
        """
        del progress
        schema = self._store.schema
        raise Misuse(
            f"a Postgres store is not copied to {destination}: back up its database",
            next=f"for one schema run `pg_dump --format=custom --schema={schema} --file={destination} DATABASE`, which "
            "copies one consistent state while the store is in use, and restore it with pg_restore into an empty "
            "database; for a whole server, or to go back to any instant, use pg_basebackup and an archive of its log. "
            "Then run flowfabric admin fsck on the copy",
        )
