"""Turning coroutines into commands: the options every command has, the connection, and how errors end a command.

`connected` is for commands that talk to a server or store, `plain` for all others. Both read the coroutine's own
signature, so a command declares only what is special to it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flowfabric.cli import exits, target
from flowfabric.contract.errors import FlowFabricError

if TYPE_CHECKING:
    from flowfabric.client.facade import Client

CONNECTION_PANEL: Final = "Where to"
COMMON_PANEL: Final = "In common"

CONNECTION_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "server": (
        Annotated[
            str | None,
            typer.Option(
                "--server", metavar="URL", help="A server, such as http://127.0.0.1:9090. "
                "Default: FLOWFABRIC_URL, else the `dev` that runs here, else that address.",
                rich_help_panel=CONNECTION_PANEL, show_default=False,
            ),
        ],
        None,
    ),
    "store": (
        Annotated[
            str | None,
            typer.Option(
                "--store", metavar="URL", help="A store opened directly, such as sqlite:///work.db or "
                "valkey://host:6379/0; one with a password is better in FLOWFABRIC_URL, which `ps` does not show.",
                rich_help_panel=CONNECTION_PANEL, show_default=False,
            ),
        ],
        None,
    ),
    "token": (
        Annotated[
            str | None,
            typer.Option(
                "--token", metavar="TOKEN", help="The server's token; better in FLOWFABRIC_TOKEN, which `ps` does "
                "not show.", rich_help_panel=CONNECTION_PANEL, show_default=False,
            ),
        ],
        None,
    ),
}  # fmt: skip

COMMON_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "as_json": (
        Annotated[
            bool,
            typer.Option("--json", help="Write JSON for scripts.", rich_help_panel=COMMON_PANEL),
        ],
        False,
    ),
    "debug": (
        Annotated[
            bool,
            typer.Option(
                "--debug", help="Show where in the program an error arose.", rich_help_panel=COMMON_PANEL
            ),
        ],
        False,
    ),
}


@dataclass(kw_only=True)
class Session:
    """What one run of a command has: its common options and, on demand, a connection."""

    server: str | None = None
    store: str | None = None
    token: str | None = None
    as_json: bool = False
    debug: bool = False
    command: str = "flowfabric"
    """As it was typed, without its options."""

    def __post_init__(self) -> None:
        self._stack: AsyncExitStack = AsyncExitStack()
        self._client: Client | None = None

    @property
    def target(self) -> target.Target:
        """What the command is to connect to."""
        return target.choose(server=self.server, store=self.store, token=self.token)

    async def client(self, *, creates: bool = False) -> Client:
        """Connect once and return the client; only with `creates` may a store be missing."""
        if self._client is None:
            from flowfabric.client.connecting import connect

            chosen = self.target
            if not chosen.is_server and not creates:
                await target.require_store(chosen.url)
            self._client = await self._stack.enter_async_context(connect(chosen.url, token=chosen.token))
        return self._client

    async def close(self) -> None:
        """Close the connection if there is one."""
        await self._stack.aclose()


Body = Callable[..., Awaitable[int | None]]


def connected(body: Body, *, stays: bool = False) -> Callable[..., None]:
    """Make a command of a coroutine `(session, ...)` that talks to a server or store.

    The coroutine returns the exit status, or None for 0. A command that `stays` runs on the faster event loop.
    """
    return _command(body, {**CONNECTION_OPTIONS, **COMMON_OPTIONS}, stays=stays)


def plain(body: Body, *, stays: bool = False) -> Callable[..., None]:
    """Make a command of a coroutine `(session, ...)` that needs no connection."""
    return _command(body, COMMON_OPTIONS, stays=stays)


def _command(body: Body, options: dict[str, tuple[Any, Any]], *, stays: bool) -> Callable[..., None]:
    hints = typing.get_type_hints(body, include_extras=True)
    own = list(inspect.signature(body).parameters.values())[1:]
    names = [parameter.name for parameter in own]
    given: Sequence[tuple[str, Any, Any]] = [
        *((parameter.name, hints[parameter.name], parameter.default) for parameter in own),
        *((name, annotation, default) for name, (annotation, default) in options.items()),
    ]
    return make(
        body.__name__,
        inspect.getdoc(body) or "",
        given,
        lambda session, arguments: body(session, **{name: arguments[name] for name in names}),
        stays=stays,
    )


def make(
    name: str,
    doc: str,
    parameters: Sequence[tuple[str, Any, Any]],
    body: Callable[[Session, dict[str, Any]], Awaitable[int | None]],
    *,
    stays: bool = False,
) -> Callable[..., None]:
    """Make a command function with these (name, annotation, default) parameters; a default of `empty` is required."""

    def command(context: typer.Context, **arguments: Any) -> None:
        session = Session(
            command=context.command_path,
            **{
                name: arguments[name]
                for name in ("server", "store", "token", "as_json", "debug")
                if name in arguments
            },
        )
        raise typer.Exit(conduct(session, functools.partial(body, session, arguments), stays=stays))

    function: Any = command
    function.__name__ = name
    function.__doc__ = doc
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, annotation, default in parameters
    ]
    function.__signature__ = inspect.Signature([context, *options])
    function.__annotations__ = {
        "context": typer.Context,
        **{name: annotation for name, annotation, _ in parameters},
    }
    return function


def conduct(session: Session, body: Callable[[], Awaitable[int | None]], *, stays: bool = False) -> int:
    """Run a command's coroutine, close its connection, and turn an error into a message and an exit status."""

    async def run() -> int | None:
        try:
            return await body()
        finally:
            await session.close()

    try:
        with asyncio.Runner(loop_factory=_fast_loop() if stays else None) as runner:
            status = runner.run(run())
    except FlowFabricError as error:
        if session.debug:
            _show_trace()
        return exits.report(error, as_json=session.as_json, command=session.command)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        if session.debug:
            _show_trace()
        return exits.report(_unexpected(error), as_json=session.as_json, command=session.command)
    return status or exits.Exit.DONE


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's event loop, where it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


def _unexpected(error: Exception) -> FlowFabricError:
    if isinstance(error, OSError) and error.filename:
        from flowfabric.contract.errors import Misuse

        return Misuse(f"{error.filename}: {error.strerror}", next="check the path and its permissions")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        from flowfabric.contract.errors import Unavailable

        return Unavailable(
            f"cannot write: {error.strerror}", next="make room where the output goes, or send it elsewhere"
        )
    return FlowFabricError(f"{type(error).__name__}: {error}")


def _show_trace() -> None:
    import traceback

    traceback.print_exc(file=sys.stderr)
