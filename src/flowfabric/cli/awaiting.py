"""`flowfabric tail`, `wait`, `cancel` and `replay`: following work to its end, and ending or repeating it.

A command that waits for work exits with 1 when the work ends without a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flowfabric.cli.command import Session, connected

if TYPE_CHECKING:
    from flowfabric.client.facade import Client
    from flowfabric.client.run import RunFrame
    from flowfabric.contract.execution import ResultUnion
    from flowfabric.contract.ids import ExecutionId

Id = Annotated[str, typer.Argument(metavar="ID", help="May be shortened.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="May be shortened.")]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="Give up after so long, such as 90s or 5m.", show_default=False
    ),
]

JSON_TYPE: Final = "application/json"
ANSWERED_TOO_SOON_S: Final = 0.05


def add(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    app.command("tail", rich_help_panel=panel)(connected(tail))
    app.command("wait", rich_help_panel=panel)(connected(wait))
    app.command("cancel", rich_help_panel=panel)(connected(cancel))
    app.command("replay", rich_help_panel=panel)(connected(replay))


async def tail(
    session: Session,
    execution_id: Id,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CURSOR",
            help="Go on after this frame; --json shows each frame's cursor.",
            show_default=False,
        ),
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Show what there is now and do not wait for more.")
    ] = False,
) -> int | None:
    """Show an execution's output live, over all its attempts, until it ends.

    Exits with 1 when the work ends without a result.
    """
    from flowfabric.cli.identify import resolve

    client = await session.client()
    whole = await resolve(client, execution_id)
    await follow(session, client, whole, start, waits=not no_follow)
    if no_follow:
        return None
    return await finish(session, client, whole, None, quiet=True)


async def wait(session: Session, execution_id: Id, timeout: Timeout = None) -> int | None:
    """Wait for an execution's end and print its result. Exits with 1 when it ends without one."""
    from flowfabric.cli.identify import resolve

    client = await session.client()
    return await finish(session, client, await resolve(client, execution_id), timeout)


async def cancel(
    session: Session,
    execution_ids: Ids,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the execution.")] = "",
) -> int | None:
    """Cancel executions, also running ones: their workers are told within one lease renewal."""
    from flowfabric.cli import exits, output
    from flowfabric.cli.identify import resolve, short
    from flowfabric.contract.errors import FlowFabricError

    client = await session.client()
    worst = 0
    for text in execution_ids:
        try:
            reply = await client.run(await resolve(client, text)).cancel(reason, actor="cli")
        except FlowFabricError as error:
            if len(execution_ids) == 1:
                raise
            output.note(f"{text}:")
            worst = max(worst, exits.report(error, as_json=session.as_json))
            continue
        if session.as_json:
            output.document(reply)
        else:
            output.line(
                f"{short(reply.execution_id)}: {'was cancelled before' if reply.already else 'cancelled'}"
            )
    return worst


async def replay(session: Session, execution_id: Id) -> None:
    """Run a finished execution again, under the same id."""
    from flowfabric.cli import output
    from flowfabric.cli.identify import resolve, short
    from flowfabric.contract.execution import ExecutionDescribe

    client = await session.client()
    whole = await resolve(client, execution_id)
    before = await client.stores.execution.describe(ExecutionDescribe(execution_id=whole))
    # Naming the count makes sending it again after a lost reply safe.
    reply = await client.run(whole).replay(actor="cli", expected_replay_count=before.replay_count)
    if session.as_json:
        output.document(reply)
        return
    output.line(f"{short(whole)}: {reply.public_state}, replay {reply.replay_count}")
    output.note(f"next: flowfabric tail {short(whole)}")


# Following and waiting ----------------------------------------------------------------------------------------------


async def follow(
    session: Session, client: Client, execution_id: ExecutionId, start: str | None, *, waits: bool = True
) -> None:
    from contextlib import aclosing

    async with aclosing(client.run(execution_id).stream(start=start, follow=waits, markers=True)) as frames:
        async for frame in frames:
            _show_frame(session, frame)


def _show_frame(session: Session, frame: RunFrame) -> None:
    from flowfabric.cli import output
    from flowfabric.contract.stream import ATTEMPT_STARTED

    if session.as_json:
        output.document(_frame_document(frame))
        return
    if frame.after_gap:
        output.note("... frames before this were removed by retention ...")
    if frame.frame_type == ATTEMPT_STARTED:
        if frame.attempt_index > 0:
            output.note(output.styled(f"-- attempt {frame.attempt_index} --", "dim"))
        return
    output.line(output.clean(output.value_text(frame.payload.data, frame.payload.content_type)))


def _frame_document(frame: RunFrame) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = {
        "cursor": frame.cursor,
        "attempt_index": frame.attempt_index,
        "sequence": frame.sequence,
        "frame_type": frame.frame_type,
        "mode": frame.mode,
        "at_ms": frame.at_ms,
        "after_gap": frame.after_gap,
    }
    if frame.payload.content_type == JSON_TYPE:
        shown["payload"] = msgspec.Raw(frame.payload.data)
    else:
        shown["payload_base64"] = frame.payload.data
        shown["content_type"] = frame.payload.content_type
    return shown


async def finish(
    session: Session, client: Client, execution_id: ExecutionId, timeout: str | None, *, quiet: bool = False
) -> int:
    """Wait for the end and show it; `quiet` shows only an end without a result."""
    from flowfabric.cli import output
    from flowfabric.contract import wire
    from flowfabric.contract.execution import ResultCompleted
    from flowfabric.contract.operations import OPERATIONS

    end = await _end(client, execution_id, timeout)
    if session.as_json:
        if not quiet:
            output.document(wire.encode_reply(OPERATIONS["execution.read_result"], end))
    elif isinstance(end, ResultCompleted):
        if not quiet and end.result is not None:
            output.payload(end.result.data, end.result.content_type)
        return 0
    if isinstance(end, ResultCompleted):
        return 0
    raise _as_error(end)


async def _end(client: Client, execution_id: ExecutionId, timeout: str | None) -> ResultUnion:
    import asyncio

    from flowfabric.client.durations import milliseconds
    from flowfabric.client.errors import ResultTimeout
    from flowfabric.contract import limits
    from flowfabric.contract.errors import ExecutionNotTerminal
    from flowfabric.contract.execution import ExecutionReadResult

    loop = asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + milliseconds(timeout, "--timeout") / 1_000
    while True:
        left_ms = limits.WAIT_MAX_MS if until is None else max(0, round((until - loop.time()) * 1_000))
        command = ExecutionReadResult(execution_id=execution_id, wait_ms=min(left_ms, limits.WAIT_MAX_MS))
        begun = loop.time()
        try:
            return await client.stores.execution.read_result(command)
        except ExecutionNotTerminal as error:
            if until is not None and loop.time() >= until:
                raise ResultTimeout(f"it has not ended within {timeout}") from error
        if loop.time() - begun < ANSWERED_TOO_SOON_S:
            # A wait that the other side cut short must not become a busy loop.
            await asyncio.sleep(ANSWERED_TOO_SOON_S)


def _as_error(end: ResultUnion) -> Exception:
    from flowfabric.cli.exits import WorkFailed
    from flowfabric.cli.identify import short
    from flowfabric.client.errors import TaskCancelled, TaskExpired, TaskFailed, TaskSkipped
    from flowfabric.contract.execution import ResultCancelled, ResultExpired, ResultFailed, ResultSkipped

    name = short(end.execution_id)
    match end:
        case ResultFailed():
            return TaskFailed(
                f"{name} failed: {end.message or end.category}",
                execution_id=end.execution_id,
                failure_class=end.failure_class.value,
                category=end.category,
                next=f"`flowfabric describe {name}` shows its attempts, `flowfabric replay {name}` runs it again",
            )
        case ResultCancelled():
            return TaskCancelled(
                f"{name} was cancelled by {end.cancelled_by}" + (f": {end.reason}" if end.reason else ""),
                execution_id=end.execution_id,
            )
        case ResultExpired():
            return TaskExpired(f"{name} ran out of time ({end.reason})", execution_id=end.execution_id)
        case ResultSkipped():
            return TaskSkipped(f"{name} was skipped", execution_id=end.execution_id)
        case _:
            return WorkFailed(f"{name} ended without a result")
