"""A TLS-terminating proxy, run as a process of its own: `python tls_proxy.py TARGET_PORT CERT KEY [CLIENT_CA]`.

It listens on a free loopback port, prints the port, and ends when its standard input does. With CLIENT_CA it asks
every client for a certificate of that authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys


async def main() -> None:
    target, cert, key, *client_ca = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if client_ca:
        context.load_verify_locations(client_ca[0])
        context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", int(target))
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.wait(
                [asyncio.create_task(pump(reader, up_writer)), asyncio.create_task(pump(up_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        writer.transport.abort()
        up_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(main())
