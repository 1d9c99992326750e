"""`flowfabric submit`: handing work in, and reading what is handed in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowfabric.cli.awaiting import JSON_TYPE, Timeout, finish, follow
from flowfabric.cli.command import Session, connected

if TYPE_CHECKING:
    from flowfabric.client.facade import Client
    from flowfabric.contract.ids import ExecutionId
    from flowfabric.contract.payloads import Payload

Kind = Annotated[str, typer.Argument(metavar="KIND", help="The task's name.")]
Input = Annotated[
    str,
    typer.Option(
        "--input", "-i", metavar="JSON", help="The task's arguments: JSON, @FILE, or - for standard input."
    ),
]
ContentType = Annotated[
    str, typer.Option("--content-type", metavar="TYPE", help="Of an input that is not JSON.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="TEXT",
        help="Idempotency key: the same key again is the same execution.",
        show_default=False,
    ),
]
Lane = Annotated[str | None, typer.Option("--lane", metavar="NAME", show_default=False)]
Priority = Annotated[
    int | None, typer.Option("--priority", help="0 to 9000; higher runs first.", show_default=False)
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="Such as app.customer=acme; may be repeated."),
]
Delay = Annotated[
    str | None,
    typer.Option(
        "--delay", metavar="TIME", help="Not before so long from now, such as 10m.", show_default=False
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="TIME", help="It expires so long from now.", show_default=False),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="JSON", help='Such as {"retry_policy": {"max_retries": 5}}.', show_default=False
    ),
]
NamespaceName = Annotated[str, typer.Option("--namespace", metavar="NAME", help="The tenant.")]
Tail = Annotated[bool, typer.Option("--tail", "-t", help="Show its output live, then its result.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Wait for its end and show its result.")]


def add(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    app.command("submit", rich_help_panel=panel)(connected(submit))


async def submit(  # noqa: PLR0913, PLR0917 -- options, each given by name on the command line
    session: Session,
    kind: Kind,
    input_text: Input = "{}",
    content_type: ContentType = JSON_TYPE,
    key: Key = None,
    lane: Lane = None,
    priority: Priority = None,
    tags: Tags = None,
    delay: Delay = None,
    deadline: Deadline = None,
    policy: Policy = None,
    namespace: NamespaceName = "default",
    tail: Tail = False,
    wait: Wait = False,
    timeout: Timeout = None,
) -> int | None:
    """Submit work and print its id."""
    from flowfabric.cli import output
    from flowfabric.cli.identify import short
    from flowfabric.contract import ids
    from flowfabric.contract.execution import ExecutionCreate, ExecutionCreated

    client = await session.client(creates=True)
    command = ExecutionCreate(
        namespace=ids.Namespace(namespace),
        lane=None if lane is None else ids.Lane(lane),
        kind=ids.Kind(kind),
        input=read_payload(input_text, content_type, "--input"),
        priority=priority,
        creator="cli",
        idempotency_key=key,
        tags=read_pairs(tags or [], "--tag"),
        policy=_read_policy(policy),
        delay_until_ms=await _from_now(client, delay, "--delay"),
        deadline_at_ms=await _from_now(client, deadline, "--deadline"),
    )
    reply = await client.stores.execution.create(command)
    if session.as_json:
        if not (tail or wait):
            output.document(reply)
    elif tail or wait:
        output.note(f"submitted {reply.execution_id}")
    else:
        output.line(reply.execution_id)
        if not isinstance(reply, ExecutionCreated):
            output.note("this had been submitted before")
        output.note(f"next: flowfabric tail {short(reply.execution_id)}")
    await _say_if_unknown(session, client, reply.execution_id, kind)
    if tail:
        await follow(session, client, reply.execution_id, None)
    if tail or wait:
        return await finish(session, client, reply.execution_id, timeout)
    return None


def read_payload(text: str, content_type: str, option: str) -> Payload:
    """Read an input: JSON text, `@FILE`, or `-` for standard input.

    Raises: `Misuse` when it claims to be JSON and is not.
    """
    import msgspec

    from flowfabric.contract.errors import Misuse
    from flowfabric.contract.payloads import Payload

    data = _read_bytes(text)
    if content_type == JSON_TYPE:
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Misuse(
                f"{option} is not JSON: {error}",
                next=f'quote it for the shell, such as {option} \'{{"path": "app.py"}}\', or give @FILE, or another '
                "--content-type",
            ) from error
        data = data.strip()
    return Payload(data, content_type)


def _read_bytes(text: str) -> bytes:
    import sys

    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text.encode("utf-8", "surrogateescape")


def read_pairs(pairs: list[str], option: str) -> dict[str, str]:
    """Read repeated `KEY=VALUE` options.

    Raises: `Misuse` for one without an equals sign.
    """
    from flowfabric.contract.errors import Misuse

    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise Misuse(f"{option} {pair!r} has no value", next=f"write {option} {key}=VALUE")
        found[key] = value
    return found


def _read_policy(text: str | None) -> Any:
    if text is None:
        return None
    import msgspec

    from flowfabric.contract.errors import Misuse
    from flowfabric.contract.policies import ExecutionPolicy

    try:
        return msgspec.json.decode(_read_bytes(text), type=ExecutionPolicy)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(
            f"--policy: {error}", next="its fields are listed in docs/concepts/execution.md under Policies"
        ) from error


async def _from_now(client: Client, length: str | None, option: str) -> int | None:
    if length is None:
        return None
    from flowfabric.client.durations import milliseconds

    stores: Any = client.stores
    now_ms: int = await stores.now_ms()
    return now_ms + milliseconds(length, option)


async def _say_if_unknown(session: Session, client: Client, execution_id: ExecutionId, kind: str) -> None:
    if session.as_json:
        return
    from flowfabric.cli import output
    from flowfabric.contract.execution import ExecutionDescribe

    snapshot = await client.stores.execution.describe(ExecutionDescribe(execution_id=execution_id))
    if not snapshot.kind_known:
        output.note(
            f"no worker has announced the kind {kind}: it waits in lane {snapshot.lane} until one does"
        )
    elif snapshot.waiting is not None and snapshot.waiting.reason == "no_capable_worker":
        output.note(f"it waits: {snapshot.waiting.message}")
