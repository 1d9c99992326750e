"""Real Postgres servers for tests, which can be killed, paused, emptied, and robbed of their connections.

    with single_node(folder) as node: ...

A node has a blocking connection of its own (`call`) that owes nothing to the client under test. It listens on a free
loopback port and ends with the test process, however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg

from flowfabric.backends.postgres import migrate
from flowfabric.contract.ids import PartitionCounts
from flowfabric.provision.loopback import Option
from flowfabric.provision.postgres import DATABASE, PostgresServer, find_binaries, version_of
from tests.valkey.servers import eventually

CALL_TIMEOUT_S: Final = 20
SCHEMA: Final = "ff"
FEW: Final = PartitionCounts(flow=16)
"""What an emptied store has if nothing else is said."""

EMPTY: Final = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT nspname AS name FROM pg_namespace
        WHERE nspname NOT IN ('ff', 'public', 'information_schema') AND left(nspname, 3) <> 'pg_' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', found.name);
    END LOOP;
    FOR found IN SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition LOOP
        EXECUTE format('DROP TABLE %s CASCADE', found.name);
    END LOOP;
    FOR found IN SELECT c.oid::regclass AS name, relkind AS kind, seqstart AS first, pg_relation_size(c.oid) AS size
        FROM pg_class c LEFT JOIN pg_sequence ON seqrelid = c.oid
        WHERE relnamespace = to_regnamespace('ff') AND relkind IN ('r', 'S')
            AND relname NOT IN ('migration', 'function_set', 'store', 'manual_clock') LOOP
        IF found.kind = 'S' THEN
            PERFORM setval(found.name, found.first, false);
        ELSIF found.size > 1000000 THEN
            EXECUTE format('TRUNCATE %s', found.name);
        ELSIF found.size > 0 THEN
            EXECUTE format('DELETE FROM %s', found.name);
        END IF;
    END LOOP;
END $$
"""
"""What opening a store makes stays; removing a few rows is quicker than making new files."""

RENEW: Final = """
UPDATE ff.store
SET store_id = gen_random_uuid(), flow_partitions = %s, budget_partitions = %s, quota_partitions = %s
"""


@cache
def server_version() -> tuple[int, int]:
    """Return the version of the Postgres that the tests start."""
    return version_of(find_binaries())


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in listed.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


class Node(PostgresServer):
    """A server to talk to and to do things to."""

    def __init__(
        self, folder: Path, options: Mapping[str, Option] | None = None, *, binaries: Path | None = None
    ) -> None:
        super().__init__(folder, options=options, binaries=binaries)
        self._lines: dict[str, psycopg.Connection[Any]] = {}

    # Talking ------------------------------------------------------------------------------------------------------

    def call(self, statement: str, *values: object, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement outside of any transaction (`%s` are its values) and return the rows; [] if it has none.

        Raises: `psycopg.Error`; after `psycopg.OperationalError` the next call connects again.
        """
        line = self._lines.get(database)
        if line is None or line.closed:
            line = psycopg.connect(
                self.url_of(database), autocommit=True, connect_timeout=CALL_TIMEOUT_S, prepare_threshold=None
            )
            self._lines[database] = line
        try:
            cursor = line.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.OperationalError:
            line.close()
            raise

    def one(self, statement: str, *values: object, database: str = DATABASE) -> Any:
        """Run one statement and return the first value of its first row."""
        return self.call(statement, *values, database=database)[0][0]

    def setting(self, name: str) -> str:
        """Return what a parameter is set to for a new connection."""
        return self.one("SELECT current_setting(%s)", name)

    def hang_up(self) -> None:
        """Close the connections of `call`."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    # Stores -------------------------------------------------------------------------------------------------------

    def empty(
        self, database: str = DATABASE, *, partitions: PartitionCounts = FEW, manual_clock: bool = False
    ) -> None:
        """End all other connections to a database, and remove what is in it; the schema stays, if there is one.

        So does the store in it: it is another one from now on, with these partitions.
        manual_clock: it is for tests that move the clock.
        """
        self.drop_connections(database)
        self.call(EMPTY, database=database)
        if self.one("SELECT to_regclass('ff.function_set') IS NOT NULL", database=database):
            self.call(RENEW, partitions.flow, partitions.budget, partitions.quota, database=database)
            self._set_clock(database, manual=manual_clock)

    def _set_clock(self, database: str, *, manual: bool) -> None:
        """Replace the function that tells the time, unless it is the right one or everything will be replaced."""
        wanted, other = (
            migrate.function_set(manual_clock=manual_clock) for manual_clock in (manual, not manual)
        )
        if self.call("SELECT content_hash FROM ff.function_set", database=database) != [
            (other.content_hash,)
        ]:
            return
        self.call(migrate.sql("create_manual_clock", SCHEMA), database=database)
        if not self.one(migrate.sql("is_manual_clock_set", SCHEMA), database=database):
            self.call("INSERT INTO ff.manual_clock (now_ms) VALUES (0)", database=database)
        statement = next(function.statement for function in wanted.functions if function.name == "now_ms")
        self.call(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"), database=database)
        self.call("UPDATE ff.function_set SET content_hash = %s", wanted.content_hash, database=database)

    def create_database(self, name: str, template: str = "template0") -> str:
        """Create a database and return its URL."""
        self.call(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        line = self._lines.pop(name, None)
        if line is not None:
            line.close()
        self.call(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    # Faults -------------------------------------------------------------------------------------------------------

    def backends(self, database: str = DATABASE, application: str = "%") -> list[int]:
        """Return the process ids of the connections to a database, but for those of `call`."""
        rows = self.call(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = %s "
            "AND application_name LIKE %s AND pid <> pg_backend_pid() AND pid <> ALL (%s) ORDER BY backend_start",
            database,
            application,
            [line.info.backend_pid for line in self._lines.values() if not line.closed],
        )
        return [pid for (pid,) in rows]

    def drop_connections(self, database: str = DATABASE, application: str = "%") -> int:
        """End connections to a database, but for those of `call`, and wait until they are gone; return how many."""
        found = self.backends(database, application)
        if found:
            self.call("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", found)
            eventually(
                lambda: not set(found).intersection(self.backends(database)), "the connections are gone"
            )
        return len(found)

    def kill(self) -> None:
        """Kill all its processes, as a crash of the machine would."""
        self.hang_up()
        children = children_of(self.pid) if self.is_running else []
        super().kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def kill_backend(self, pid: int) -> None:
        """Kill the process of one connection: the server ends all connections and recovers."""
        assert pid in children_of(self.pid)
        os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """Stop it in its tracks: it keeps its connections and answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal_all(signal.SIGCONT)

    def stop(self, *, timeout_s: float = 20.0) -> None:
        self.hang_up()
        if self.is_running:
            self.resume()
        super().stop(timeout_s=timeout_s)

    def discard(self) -> None:
        self.hang_up()
        if self.is_running:
            self.resume()
        super().discard()

    def _signal_all(self, number: signal.Signals) -> None:
        # The parent first: a stopped one starts no more children, and a running one reaps none that are stopped.
        for pid in (self.pid, *children_of(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def single_node(folder: Path, *, binaries: Path | None = None, **options: Option) -> Iterator[Node]:
    """Run a server with its data in a folder, which is removed afterwards: `single_node(f, max_connections=20)`."""
    node = Node(folder, options, binaries=binaries)
    try:
        node.start()
        yield node
    finally:
        node.discard()
