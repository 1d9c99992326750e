"""`flowfabric list` and `describe`: what there is, where it stands, why it is not running and what would let it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowfabric.cli.command import Session, connected

if TYPE_CHECKING:
    from flowfabric.contract.attempt import AttemptInfo
    from flowfabric.contract.execution import ExecutionInfo, ExecutionSnapshot

LIMIT_DEFAULT = 50

Lane = Annotated[str | None, typer.Option("--lane", metavar="NAME", show_default=False)]
State = Annotated[
    str | None,
    typer.Option("--state", metavar="STATE", help="waiting, delayed, active, resumable, completed, failed, ...",
                 show_default=False),
]  # fmt: skip
Kind = Annotated[
    str | None, typer.Option("--kind", metavar="NAME", help="The task's name.", show_default=False)
]
Tag = Annotated[
    str | None,
    typer.Option("--tag", metavar="KEY[=VALUE]", help="Such as app.customer=acme.", show_default=False),
]
NamespaceName = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="Default: all.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to show.")]
Everything = Annotated[bool, typer.Option("--all", help="Show all, however many.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="May be shortened.")]


def add(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    app.command("list", rich_help_panel=panel)(connected(list_executions))
    app.command("describe", rich_help_panel=panel)(connected(describe))


async def list_executions(
    session: Session,
    lane: Lane = None,
    state: State = None,
    kind: Kind = None,
    tag: Tag = None,
    namespace: NamespaceName = None,
    limit: Limit = LIMIT_DEFAULT,
    everything: Everything = False,
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", metavar="TEXT", help="Go on where a page ended.", show_default=False),
    ] = None,
) -> None:
    """List executions, newest first."""
    import msgspec

    from flowfabric.cli import output
    from flowfabric.contract import ids, limits
    from flowfabric.contract.execution import ExecutionList

    query = ExecutionList(
        namespace=None if namespace is None else ids.Namespace(namespace),
        lane=None if lane is None else ids.Lane(lane),
        kind=None if kind is None else ids.Kind(kind),
        state=None if state is None else public_state(state),
        tag=tag,
        cursor=cursor,
    )
    client = await session.client()
    found: list[ExecutionInfo] = []
    following = cursor
    while everything or len(found) < limit:
        wanted = limits.PAGE_MAX if everything else min(limit - len(found), limits.PAGE_MAX)
        page = await client.stores.execution.list(
            msgspec.structs.replace(query, cursor=following, limit=wanted)
        )
        found.extend(page.executions)
        following = page.next_cursor
        if following is None:
            break
    if session.as_json:
        output.document({"executions": found, "next_cursor": following})
        return
    _show(found)
    if following is not None:
        output.note(f"there may be more: --all, or --cursor {following}")


def public_state(text: str) -> Any:
    """Return the public state that text names.

    Raises: `Misuse` naming the states there are.
    """
    from flowfabric.contract.errors import Misuse
    from flowfabric.contract.states import PublicState

    try:
        return PublicState(text.lower())
    except ValueError as error:
        raise Misuse(
            f"{text!r} is no state", next="one of " + ", ".join(state.value for state in PublicState)
        ) from error


def _show(found: list[ExecutionInfo]) -> None:
    from flowfabric.cli import output
    from flowfabric.cli.identify import short

    now_ms = time.time_ns() // 1_000_000
    output.table(
        ("ID", "KIND", "STATE", "LANE", "PRIORITY", "ATTEMPT", "CREATED", "TOOK"),
        [
            (
                short(info.execution_id),
                info.kind,
                info.public_state.value,
                info.lane,
                str(info.priority),
                "-" if info.current_attempt_index is None else str(info.current_attempt_index),
                output.ago(info.created_at_ms, now_ms),
                _took(info, now_ms),
            )
            for info in found
        ],
        empty="no executions match",
    )


def _took(info: ExecutionInfo, now_ms: int) -> str:
    from flowfabric.cli import output

    if info.started_at_ms is None:
        return "-"
    end_ms = info.completed_at_ms if info.completed_at_ms is not None else now_ms
    return output.duration(max(0, end_ms - info.started_at_ms))


async def describe(session: Session, execution_id: Id) -> None:
    """Show everything about one execution, and why it is not running if it is not."""
    from flowfabric.cli import output
    from flowfabric.cli.identify import resolve
    from flowfabric.contract.attempt import AttemptList
    from flowfabric.contract.execution import ExecutionDescribe

    client = await session.client()
    whole = await resolve(client, execution_id)
    snapshot = await client.stores.execution.describe(ExecutionDescribe(execution_id=whole))
    if session.as_json:
        output.document(snapshot)
        return
    attempts = await client.stores.attempt.list(AttemptList(execution_id=whole))
    output.fields([(name, value) for name, value in _facts(snapshot) if value])
    if attempts.attempts:
        output.line("")
        _show_attempts(attempts.attempts)


def _facts(snapshot: ExecutionSnapshot) -> list[tuple[str, str]]:
    from flowfabric.cli import output

    now_ms = time.time_ns() // 1_000_000
    vector = snapshot.state_vector
    return [
        ("id", snapshot.execution_id),
        ("kind", snapshot.kind + ("" if snapshot.kind_known else "  (no worker has announced this kind)")),
        ("state", f"{snapshot.public_state.value}  ({vector.lifecycle_phase}, {vector.attempt_state})"),
        *_why(snapshot, now_ms),
        ("failure", _failure(snapshot)),
        ("cancelled", _cancelled(snapshot)),
        ("progress", _progress(snapshot, now_ms)),
        ("lane", f"{snapshot.lane}  (priority {snapshot.priority})"),
        ("namespace", "" if snapshot.namespace == "default" else snapshot.namespace),
        ("requires", ", ".join(snapshot.required_capabilities)),
        ("tags", ", ".join(f"{key}={value}" for key, value in sorted(snapshot.tags.items()))),
        ("key", snapshot.idempotency_key or ""),
        ("creator", snapshot.creator),
        (
            "created",
            f"{output.instant(snapshot.created_at_ms)}  ({output.ago(snapshot.created_at_ms, now_ms)})",
        ),
        ("started", _at(snapshot.started_at_ms, now_ms)),
        ("ended", _at(snapshot.completed_at_ms, now_ms)),
        ("not before", _at(snapshot.not_before_ms, now_ms)),
        ("deadline", _at(snapshot.deadline_at_ms, now_ms)),
        ("kept until", _at(snapshot.retention_due_at_ms, now_ms)),
        ("worker", _holder(snapshot, now_ms)),
        ("counts", _counts(snapshot)),
        ("policy", _policy(snapshot)),
    ]


def _why(snapshot: ExecutionSnapshot, now_ms: int) -> list[tuple[str, str]]:
    from flowfabric.cli import output

    waiting = snapshot.waiting
    if waiting is None:
        return []
    until = f" ({output.ago(waiting.until_ms, now_ms)})" if waiting.until_ms is not None else ""
    missing = f" Missing: {', '.join(waiting.missing_capabilities)}." if waiting.missing_capabilities else ""
    step = {
        "no_capable_worker": f"start a worker that runs {snapshot.kind} in lane {snapshot.lane}"
        + (f" with --capability {' --capability '.join(snapshot.required_capabilities)}" if missing else ""),
        "workers_busy": "wait, or start more workers; `flowfabric workers list` shows what they hold",
        "lane_paused": f"flowfabric lane resume {snapshot.lane}",
        "lane_disabled": f"flowfabric lane resume {snapshot.lane}",
        "blocked": f"flowfabric admin execution unblock --execution-id {snapshot.execution_id[-36:][:8]}",
        "delayed": "wait",
        "retry_backoff": "wait: it is tried again by itself",
        "granted": "wait for the worker that was granted it, or for the grant to run out",
        "waiting_children": "wait for what it depends on",
        "reclaim_grace": "wait: another worker takes it over after the grace",
    }[waiting.reason]
    return [("waits", f"{waiting.message}{until}{missing}"), ("what helps", step)]


def _failure(snapshot: ExecutionSnapshot) -> str:
    if snapshot.failure is None:
        return ""
    failure = snapshot.failure
    return f"{failure.failure_class}/{failure.category}: {failure.message}"


def _cancelled(snapshot: ExecutionSnapshot) -> str:
    if snapshot.cancelled_by is None:
        return ""
    return f"by {snapshot.cancelled_by}" + (f": {snapshot.cancel_reason}" if snapshot.cancel_reason else "")


def _progress(snapshot: ExecutionSnapshot, now_ms: int) -> str:
    from flowfabric.cli import output

    progress = snapshot.progress
    if progress is None:
        return ""
    parts = [f"{progress.percent:g} %" if progress.percent is not None else "", progress.message or ""]
    return "  ".join(part for part in parts if part) + f"  ({output.ago(progress.at_ms, now_ms)})"


def _at(ms: int | None, now_ms: int) -> str:
    from flowfabric.cli import output

    return "" if ms is None else f"{output.instant(ms)}  ({output.ago(ms, now_ms)})"


def _holder(snapshot: ExecutionSnapshot, now_ms: int) -> str:
    from flowfabric.cli import output

    lease = snapshot.current_lease
    if lease is None:
        return ""
    return f"{lease.worker_instance}  (lease {lease.lease_epoch}, runs out {output.ago(lease.expires_at_ms, now_ms)})"


def _counts(snapshot: ExecutionSnapshot) -> str:
    return (
        f"{snapshot.total_attempt_count} attempts, {snapshot.retry_count} retries, "
        f"{snapshot.reclaim_count} taken over, {snapshot.replay_count} replays"
    )


def _policy(snapshot: ExecutionSnapshot) -> str:
    import msgspec

    text = msgspec.json.encode(snapshot.policy).decode()
    return "" if text == "{}" else text


def _show_attempts(attempts: tuple[AttemptInfo, ...]) -> None:
    from flowfabric.cli import output

    output.table(
        ("ATTEMPT", "TYPE", "STATE", "STARTED", "TOOK", "WORKER", "FAILURE"),
        [
            (
                str(attempt.attempt_index),
                attempt.attempt_type.value,
                attempt.state.value,
                output.instant(attempt.started_at_ms),
                "-"
                if attempt.ended_at_ms is None
                else output.duration(max(0, attempt.ended_at_ms - attempt.started_at_ms)),
                attempt.worker_instance,
                "-"
                if attempt.failure is None
                else f"{attempt.failure.category}: {attempt.failure.message}"[:80],
            )
            for attempt in attempts
        ],
        empty="",
    )
