"""A thin RESP3 client for Valkey: pipelined calls to one server or a cluster, and the truth about those that fail.

Here are bytes, connections, routing and deadlines; nothing of the engine. What must stay true: a call that may have
been executed is never sent again behind the caller's back, replies reach exactly the caller they belong to, and every
call ends by its deadline.
"""

from __future__ import annotations

from flowfabric.backends.valkey.wire.address import Address, parse_url
from flowfabric.backends.valkey.wire.blocking import BlockingConnection
from flowfabric.backends.valkey.wire.client import Client, connect
from flowfabric.backends.valkey.wire.commands import Argument, Command
from flowfabric.backends.valkey.wire.replies import Answer, Reply, ServerError
from flowfabric.backends.valkey.wire.slots import slot_of
from flowfabric.backends.valkey.wire.subscriber import Subscriber

__all__ = [
    "Address",
    "Answer",
    "Argument",
    "BlockingConnection",
    "Client",
    "Command",
    "Reply",
    "ServerError",
    "Subscriber",
    "connect",
    "parse_url",
    "slot_of",
]
