"""Opening a connection: socket, TLS, and the handshake that makes it usable.

The handshake is one pipelined group: HELLO 3 with credentials and a name, the library's name, the database, and INFO,
whose run id tells a restarted server from the one known before. What can only be put right by a person (a wrong
password, no TLS where TLS was asked for) is `Misuse`; everything else is worth another try and is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

import msgspec

from flowfabric.backends.valkey.wire.address import Address, Endpoint, Tls
from flowfabric.backends.valkey.wire.commands import Command, encode
from flowfabric.backends.valkey.wire.connection import Connection, ConnectionLost, Group
from flowfabric.backends.valkey.wire.replies import Answer, ServerError, text
from flowfabric.contract.errors import Misuse, Unavailable

DIAL_TIMEOUT_S: Final = 5.0
"""How long one attempt to connect may take, handshake included."""

KEEPALIVE_S: Final = 15
"""Idle seconds after which the operating system probes a connection."""

CLIENT_NAME: Final = "flowfabric"

_HOPELESS: Final = ("WRONGPASS", "NOAUTH", "NOPERM", "NOPROTO", "DENIED")


class Greeting(msgspec.Struct, frozen=True):
    """What a server said about itself. `run_id` changes with each start; empty when we may not read it."""

    version: str
    mode: str
    role: str
    run_id: str


class Dialer:
    """Opens connections to any server of one address with its credentials, database and TLS settings."""

    def __init__(self, address: Address) -> None:
        self._address: Address = address
        self._tls: ssl.SSLContext | None = _tls_context(address.tls) if address.tls else None

    async def dial(self, endpoint: Endpoint) -> tuple[Connection, Greeting]:
        """Connect and shake hands within DIAL_TIMEOUT_S.

        Raises: Misuse when trying again cannot help, else Unavailable.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                connection = await self._open(endpoint)
                greeting = await self._greet(connection)
                if not connection.is_open:
                    raise ConnectionLost(f"{endpoint.name} closed the connection", is_written=True)
                return connection, greeting
        except BaseException as error:
            if connection is not None:
                connection.abort("the handshake failed")
                await connection.closed
            if isinstance(error, OSError | ConnectionLost | UnicodeError):  # TimeoutError is an OSError
                raise _explained(endpoint, error, is_tls=self._tls is not None) from error
            raise

    async def _open(self, endpoint: Endpoint) -> Connection:
        loop = asyncio.get_running_loop()

        def factory() -> Connection:
            return Connection(loop, endpoint.name)

        if endpoint.path:
            _, connection = await loop.create_unix_connection(factory, endpoint.path)
            return connection
        transport, connection = await loop.create_connection(
            factory,
            endpoint.host,
            endpoint.port,
            ssl=self._tls,
            server_hostname=endpoint.host if self._tls else None,
        )
        _keep_alive(transport.get_extra_info("socket"))
        return connection

    async def _greet(self, connection: Connection) -> Greeting:
        commands = self._handshake()
        loop = asyncio.get_running_loop()
        group = Group(encode(commands), len(commands), loop.time() + DIAL_TIMEOUT_S, loop.create_future())
        connection.send(group)
        replies = await group.future
        hello, info = replies[0], replies[-1]
        if self._address.database and isinstance(replies[1], ServerError):
            raise Misuse(
                f"{connection.peer} has no database {self._address.database} for us: {replies[1].message}"
            )
        if isinstance(hello, ServerError):
            raise _not_welcome(connection.peer, hello)
        if not isinstance(hello, dict):
            raise Misuse(f"{connection.peer} answers HELLO in a way no Valkey does")
        return Greeting(
            version=text(hello.get(b"version")),
            mode=text(hello.get(b"mode")),
            role=text(hello.get(b"role")),
            run_id=_field(info, b"run_id"),
        )

    def _handshake(self) -> list[Command]:
        address = self._address
        hello: Command = ("HELLO", 3)
        if address.password is not None:
            hello += ("AUTH", address.username or "default", address.password)
        commands: list[Command] = [(*hello, "SETNAME", CLIENT_NAME)]
        if address.database:
            commands.append(("SELECT", address.database))
        # An ACL may forbid these two; neither is needed.
        commands.append(("CLIENT", "SETINFO", "LIB-NAME", CLIENT_NAME))
        commands.append(("INFO", "server"))
        return commands


def _tls_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ValueError) as error:
        raise Misuse(f"the TLS files of the store's URL cannot be read: {error}") from error
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Linux and macOS spell the idle time differently; where neither exists the system's default stands.
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    if idle is not None:
        sock.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_S)
    if hasattr(socket, "TCP_KEEPINTVL"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _explained(endpoint: Endpoint, error: Exception, *, is_tls: bool) -> Misuse | Unavailable:
    """Say what a failed attempt means and, where a person must act, what to do."""
    match error:
        case ssl.SSLCertVerificationError():
            return Misuse(
                f"{endpoint.name}: its certificate is not trusted ({error.verify_message}): give the authority "
                "with ?ca=file.pem"
            )
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST" | "RECORD_LAYER_FAILURE"):
            return Misuse(f"{endpoint.name} does not speak TLS: use valkey:// without the s")
        case ConnectionLost() if "not a reply" in error.reason:
            return Misuse(
                f"{endpoint.name} does not speak Valkey's protocol (another port? TLS, then valkeys://): {error.reason}"
            )
        case ConnectionLost() if "CERTIFICATE_REQUIRED" in error.reason:
            return Misuse(f"{endpoint.name} asks for a client certificate: give ?cert=file.pem&key=file.pem")
        case ConnectionLost():
            hint = "" if is_tls or endpoint.path else " (does it want TLS? then valkeys://)"
            return Unavailable(f"{error.reason}{hint}")
        case TimeoutError():
            return Unavailable(f"{endpoint.name} did not answer within {DIAL_TIMEOUT_S:g} s")
        case UnicodeError():
            return Misuse(f"{endpoint.name} is not a host name")
        case _:
            return Unavailable(f"{endpoint.name} cannot be reached: {error}")


def _not_welcome(peer: str, error: ServerError) -> Misuse | Unavailable:
    match error.code:
        case "WRONGPASS":
            return Misuse(f"{peer} refuses the user or password of the store's URL: {error.message}")
        case "NOAUTH":
            return Misuse(
                f"{peer} asks for a password: write valkey://user:password@host (no user: valkey://:password@host)"
            )
        case code if code in _HOPELESS:
            return Misuse(f"{peer} does not let us in: {error.message}")
        case "ERR" if "unknown command" in error.message.lower():
            return Misuse(f"{peer} does not know HELLO: it is no Valkey, or far too old")
        case _:
            return Unavailable(f"{peer} does not take connections now: {error.message}")


def _field(info: Answer, name: bytes) -> str:
    if isinstance(info, bytes):
        for line in info.splitlines():
            key, _, value = line.partition(b":")
            if key == name:
                return value.decode("ascii", "replace").strip()
    return ""
