"""TLS, through a process that terminates it before a real server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric.backends.valkey.wire import connect, parse_url
from flowfabric.contract.errors import Misuse, Unavailable
from tests.backends.valkey.wire import tls_proxy
from tests.backends.valkey.wire.between import until
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, certificates of 127.0.0.1 and of another host, and one for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test"))
    for name, alternative in (
        ("here", "IP:127.0.0.1"),
        ("elsewhere", "DNS:elsewhere.test"),
        ("client", "DNS:client"),
    ):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names.cnf").write_text(f"subjectAltName={alternative}\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names.cnf", "-out", f"{name}.pem"),
        )
    return folder


@contextlib.contextmanager
def terminating(server: Server, folder: Path, name: str, *client_ca: str) -> Iterator[str]:
    """Run a TLS proxy with this certificate before the server; give its `host:port`."""
    command = [sys.executable, tls_proxy.__file__, str(server.port), f"{name}.pem", f"{name}.key", *client_ca]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def test_everything_works_over_tls(server: Server, certificates: Path, connects: Connects) -> None:
    """Calls of any size, blocked calls and subscriptions work over TLS with a trusted authority."""
    with terminating(server, certificates, "here") as place:
        client = await connects(f"valkeys://{place}?ca={certificates}/ca.pem")
        value = b"v" * (8 * 1024 * 1024)
        assert await client.execute(0, [("SET", "big", value), ("GET", "big")]) == [b"OK", value]
        small = await asyncio.gather(*(client.execute(0, [("ECHO", number)]) for number in range(1_000)))
        assert small == [[b"%d" % number] for number in range(1_000)]
        got: list[bytes] = []
        await client.subscriber().add(b"a", 0, got.append)
        waiting = await client.blocking(0)
        bell = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
        await client.execute(0, [("SPUBLISH", "a", "hello"), ("RPUSH", "bell", "token")])
        assert await bell == [b"bell", b"token"]
        await until(lambda: got == [b"hello"], "the message came")
        server.call("CLIENT", "KILL", "TYPE", "NORMAL")
        assert await client.execute(0, [("PING",)], repeatable=True) == [b"PONG"]


async def test_an_unknown_authority_is_not_trusted(
    server: Server, certificates: Path, connects: Connects
) -> None:
    """Without the authority connecting is refused with what to do; `insecure=1` trusts any certificate."""
    with terminating(server, certificates, "here") as place:
        with pytest.raises(Misuse, match=r"\?ca="):
            await connect(parse_url(f"valkeys://{place}"))
        client = await connects(f"valkeys://{place}?insecure=1")
        assert await client.execute(0, [("PING",)]) == [b"PONG"]


async def test_a_certificate_of_another_host_is_not_trusted(server: Server, certificates: Path) -> None:
    """A trusted certificate that names another host is refused."""
    with terminating(server, certificates, "elsewhere") as place:
        url = parse_url(f"valkeys://{place}?ca={certificates}/ca.pem")
        with pytest.raises(Misuse, match="not trusted"):
            await connect(url)


async def test_a_client_certificate(server: Server, certificates: Path, connects: Connects) -> None:
    """A server that asks for a client certificate gets it; without one nobody is let in."""
    ca, cert, key = (certificates / name for name in ("ca.pem", "client.pem", "client.key"))
    with terminating(server, certificates, "here", "ca.pem") as place:
        # The refusal may be overtaken by the end of the connection.
        with pytest.raises((Misuse, Unavailable)):
            await connect(parse_url(f"valkeys://{place}?ca={ca}"), timeout_s=0.3)
        client = await connects(f"valkeys://{place}?ca={ca}&cert={cert}&key={key}")
        assert await client.execute(0, [("PING",)]) == [b"PONG"]


async def test_tls_and_plain_are_not_mixed_up(server: Server, certificates: Path) -> None:
    """TLS to a plain server and plain to a TLS server are both explained."""
    with pytest.raises(Unavailable, match="does it speak TLS"):
        await connect(parse_url(f"valkeys://{server.name}?insecure=1"), timeout_s=0.3)
    with terminating(server, certificates, "here") as place:
        url = parse_url(f"valkey://{place}")
        with pytest.raises((Misuse, Unavailable), match="valkeys://"):
            await connect(url, timeout_s=0.3)


async def test_files_that_cannot_be_read_are_explained(server: Server, certificates: Path) -> None:
    """A missing authority file, and a key that is none, are `Misuse`."""
    for options in ("ca=/nowhere/ca.pem", f"cert={certificates}/client.pem&key={certificates}/ca.pem"):
        with pytest.raises(Misuse, match="cannot be read"):
            await connect(parse_url(f"valkeys://{server.name}?{options}"))
