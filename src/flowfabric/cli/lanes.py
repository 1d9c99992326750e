"""`flowfabric lane`: look at lanes, and open or close them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flowfabric.cli.command import Session, connected

if TYPE_CHECKING:
    from flowfabric.contract.states import LaneState

LaneName = Annotated[str, typer.Argument(metavar="LANE", help="The lane's name.")]


def add(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at lanes; pause, resume, drain or disable one.", no_args_is_help=True)
    group.command("list")(connected(lane_list))
    group.command("pause")(connected(pause))
    group.command("resume")(connected(resume))
    group.command("drain")(connected(drain))
    group.command("disable")(connected(disable))
    app.add_typer(group, name="lane", rich_help_panel=panel)


async def lane_list(session: Session) -> None:
    """List the lanes and their states."""
    from flowfabric.cli import output
    from flowfabric.contract.lane import LaneInfo, LaneList

    client = await session.client()
    found: list[LaneInfo] = []
    cursor: str | None = None
    while True:
        page = await client.stores.lane.list(LaneList(cursor=cursor))
        found.extend(page.lanes)
        cursor = page.next_cursor
        if cursor is None:
            break
    if session.as_json:
        output.document({"lanes": found, "next_cursor": None})
        return
    output.table(
        ("LANE", "STATE", "SINCE", "ROUTES"),
        [
            (info.lane, info.state.value, output.instant(info.changed_at_ms), str(info.routes))
            for info in found
        ],
        empty="no lanes yet: a lane exists from its first use",
    )


async def pause(session: Session, lane: LaneName) -> None:
    """Take work in, hand none out. Acts on the next claim."""
    from flowfabric.contract.states import LaneState

    await _set(session, lane, LaneState.PAUSED, "takes work in, hands none out")


async def resume(session: Session, lane: LaneName) -> None:
    """Take work in and hand it out again."""
    from flowfabric.contract.states import LaneState

    await _set(session, lane, LaneState.ACTIVE, "takes work in and hands it out")


async def drain(session: Session, lane: LaneName) -> None:
    """Take no more work in, hand out what is there."""
    from flowfabric.contract.states import LaneState

    await _set(session, lane, LaneState.DRAINING, "takes no more work in, hands out what is there")


async def disable(session: Session, lane: LaneName) -> None:
    """Neither take work in nor hand any out."""
    from flowfabric.contract.states import LaneState

    await _set(session, lane, LaneState.DISABLED, "neither takes work in nor hands any out")


async def _set(session: Session, lane: str, state: LaneState, meaning: str) -> None:
    from flowfabric.cli import output
    from flowfabric.contract.ids import Lane
    from flowfabric.contract.lane import LaneSetState

    client = await session.client()
    reply = await client.stores.lane.set_state(LaneSetState(lane=Lane(lane), state=state))
    if session.as_json:
        output.document(reply)
        return
    output.line(f"{reply.lane}: {reply.state} (was {reply.previous}); it {meaning}")
