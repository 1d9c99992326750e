"""`flowfabric.enqueue`: submit a task as part of a change in the application's own Postgres database.

The store is in the same database; the task is submitted exactly if the application's transaction commits. Nothing here
opens, commits or rolls back anything, and nothing waits: what was enqueued is found with `Client.run` once the
transaction is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

import msgspec

from flowfabric import backends
from flowfabric.backends.inside import Outcome
from flowfabric.client.durations import Duration
from flowfabric.client.errors import SubmitManyFailed
from flowfabric.client.submittable import Submittable
from flowfabric.client.submitting import Options, SubmitOptions, known_task, many_options, merged
from flowfabric.contract import ids
from flowfabric.contract.errors import FlowFabricError
from flowfabric.contract.execution import ExecutionCreate, ExecutionDuplicate
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.policies import ExecutionPolicy


class Enqueued(msgspec.Struct, frozen=True):
    """A task that is submitted once the transaction commits: `client.run(enqueued.id, task)` is its run then."""

    id: ExecutionId
    duplicate: bool = False
    """The same had been submitted before: this is the earlier run."""


async def enqueue(  # noqa: PLR0913 -- options, each given by name
    connection: object,
    task: Submittable[Any] | str,
    /,
    *,
    idempotency_key: str | None = None,
    lane: str | None = None,
    priority: int | None = None,
    tags: Mapping[str, str] | None = None,
    policy: ExecutionPolicy | None = None,
    delay: Duration | datetime | None = None,
    deadline: Duration | datetime | None = None,
    namespace: str = ids.DEFAULT_NAMESPACE,
    execution_id: str | None = None,
    traceparent: str | None = None,
    schema: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Enqueued:
    """Submit a task, by itself or by name, inside the transaction that is under way on a connection.

    `connection` is an asyncpg connection, an `AsyncConnection` of psycopg, or an `AsyncConnection` or `AsyncSession` of
    SQLAlchemy, to the database that holds the store; `schema` is the store's, `ff` unless it was made in another. The
    other options are those of `Client.submit`. The task runs once the transaction is committed; when it is rolled back
    nothing was ever submitted.

    Idempotent as `Client.submit`. Refuses the same, leaving the transaction as it was. Raises: `Misuse` for arguments
    that cannot be written as JSON, a connection that would commit by itself, or a database without a store; what the
    connection itself raises is passed on.
    """
    transaction = backends.inside(connection, schema=schema)
    options = Options(
        lane=lane,
        priority=priority,
        tags=tags,
        policy=policy,
        delay=delay,
        deadline=deadline,
        namespace=namespace,
        traceparent=traceparent,
    )
    now_ms = await transaction.now_ms() if options.needs_now else 0
    command = options.submission(now_ms).create(
        known_task(task), merged(arguments, keywords), idempotency_key, execution_id
    )
    return _one(command, await transaction.create_many([command]))


def enqueue_sync(  # noqa: PLR0913 -- options, each given by name
    connection: object,
    task: Submittable[Any] | str,
    /,
    *,
    idempotency_key: str | None = None,
    lane: str | None = None,
    priority: int | None = None,
    tags: Mapping[str, str] | None = None,
    policy: ExecutionPolicy | None = None,
    delay: Duration | datetime | None = None,
    deadline: Duration | datetime | None = None,
    namespace: str = ids.DEFAULT_NAMESPACE,
    execution_id: str | None = None,
    traceparent: str | None = None,
    schema: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Enqueued:
    """Submit a task inside the transaction that is under way on a connection that blocks.

    `connection` is a `Connection` of psycopg, or a `Connection` or `Session` of SQLAlchemy; everything else is as in
    `enqueue`.
    """
    transaction = backends.inside(connection, schema=schema)
    options = Options(
        lane=lane,
        priority=priority,
        tags=tags,
        policy=policy,
        delay=delay,
        deadline=deadline,
        namespace=namespace,
        traceparent=traceparent,
    )
    now_ms = transaction.now_ms_sync() if options.needs_now else 0
    command = options.submission(now_ms).create(
        known_task(task), merged(arguments, keywords), idempotency_key, execution_id
    )
    return _one(command, transaction.create_many_sync([command]))


async def enqueue_many(
    connection: object,
    task: Submittable[Any] | str,
    arguments: Sequence[Mapping[str, Any]],
    /,
    *,
    keys: Sequence[str | None] | None = None,
    schema: str | None = None,
    **options: Unpack[SubmitOptions],
) -> list[Enqueued]:
    """Submit a task once per set of arguments inside the transaction that is under way on a connection.

    `keys` are the idempotency keys, one per item; the other options are those of `enqueue` and the same for every item.

    Raises: `SubmitManyFailed`, a group of the refusals of single items, when there are any; its `runs` are those that
    were enqueued all the same, and are submitted if the transaction is committed nevertheless.
    """
    transaction = backends.inside(connection, schema=schema)
    how = many_options(options, ids.DEFAULT_NAMESPACE)
    now_ms = await transaction.now_ms() if how.needs_now else 0
    commands = how.submission(now_ms).create_each(known_task(task), arguments, keys)
    return _many(commands, await transaction.create_many(commands))


def enqueue_many_sync(
    connection: object,
    task: Submittable[Any] | str,
    arguments: Sequence[Mapping[str, Any]],
    /,
    *,
    keys: Sequence[str | None] | None = None,
    schema: str | None = None,
    **options: Unpack[SubmitOptions],
) -> list[Enqueued]:
    """Submit a task once per set of arguments inside the transaction that is under way on a connection that blocks.

    Everything is as in `enqueue_many`.
    """
    transaction = backends.inside(connection, schema=schema)
    how = many_options(options, ids.DEFAULT_NAMESPACE)
    now_ms = transaction.now_ms_sync() if how.needs_now else 0
    commands = how.submission(now_ms).create_each(known_task(task), arguments, keys)
    return _many(commands, transaction.create_many_sync(commands))


def _one(command: ExecutionCreate, outcomes: Sequence[Outcome]) -> Enqueued:
    (outcome,) = outcomes
    if isinstance(outcome, FlowFabricError):
        raise outcome
    return _enqueued(command, outcome)


def _many(commands: Sequence[ExecutionCreate], outcomes: Sequence[Outcome]) -> list[Enqueued]:
    found: list[Enqueued] = []
    runs: list[Enqueued | None] = []
    errors: list[FlowFabricError] = []
    for index, (command, outcome) in enumerate(zip(commands, outcomes, strict=True)):
        if isinstance(outcome, FlowFabricError):
            outcome.details["index"] = index
            errors.append(outcome)
            runs.append(None)
        else:
            found.append(_enqueued(command, outcome))
            runs.append(found[-1])
    if errors:
        failed = SubmitManyFailed(f"{len(errors)} of {len(commands)} items were not enqueued", errors)
        failed.runs = runs
        raise failed
    return found


def _enqueued(command: ExecutionCreate, outcome: Outcome) -> Enqueued:
    if isinstance(outcome, FlowFabricError):
        raise outcome
    return Enqueued(outcome.execution_id, isinstance(outcome, ExecutionDuplicate))
