"""A cluster as one of its nodes describes it: who owns which slots, who else is a primary, who follows.

CLUSTER SLOTS says where to send what (it honours the endpoint the cluster wants clients to use); CLUSTER NODES adds
the primaries that own no slot yet, which need the function library before their first one arrives. Parsing only.
"""

from __future__ import annotations

import msgspec

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.replies import Answer, Reply, ServerError, text
from flowfabric.backends.valkey.wire.slots import SLOTS


class View(msgspec.Struct, frozen=True):
    """`owners`: (first slot, last slot, primary), inclusive; `primaries` includes those without slots."""

    owners: tuple[tuple[int, int, Endpoint], ...]
    primaries: tuple[Endpoint, ...]
    replicas: tuple[Endpoint, ...]


def read_view(slots: Answer, nodes: Answer, asked: Endpoint) -> View | None:
    """Make a view of the replies to CLUSTER SLOTS and CLUSTER NODES; None when they name no owner of any slot."""
    if not isinstance(slots, list):
        return None
    owners: list[tuple[int, int, Endpoint]] = []
    primaries: dict[Endpoint, None] = {}
    replicas: dict[Endpoint, None] = {}
    owning_ids: set[str] = set()
    for entry in slots:
        if not (isinstance(entry, list) and len(entry) >= 3):
            return None
        first, last, *servers = entry
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < SLOTS):
            return None
        for position, server in enumerate(servers):
            endpoint = _server(server, asked)
            if endpoint is None:
                continue
            if position == 0:
                owners.append((first, last, endpoint))
                primaries[endpoint] = None
                owning_ids.add(_id(server))
            else:
                replicas[endpoint] = None
    if not owners:
        return None
    for endpoint in _slotless_primaries(text(nodes), owning_ids, asked):
        primaries[endpoint] = None
    return View(owners=tuple(owners), primaries=tuple(primaries), replicas=tuple(replicas))


def read_redirect(error: ServerError, answered: Endpoint) -> tuple[int, Endpoint] | None:
    """Read `MOVED slot host:port` or `ASK slot host:port`; a missing host means the host that answered."""
    parts = error.message.split(" ")
    if len(parts) < 3 or not parts[1].isdigit() or int(parts[1]) >= SLOTS:
        return None
    host, _, port = parts[2].rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65_535):
        return None
    return int(parts[1]), Endpoint(host=_host(host, answered), port=int(port))


def _host(host: str, asked: Endpoint) -> str:
    return asked.host if host in {"", "?"} else host.removeprefix("[").removesuffix("]")


def _server(server: Reply, asked: Endpoint) -> Endpoint | None:
    if not (isinstance(server, list) and len(server) >= 2 and isinstance(server[1], int)):
        return None
    return Endpoint(host=_host(text(server[0]), asked), port=server[1])


def _id(server: Reply) -> str:
    return text(server[2]) if isinstance(server, list) and len(server) >= 3 else ""


def _slotless_primaries(nodes: str, owning_ids: set[str], asked: Endpoint) -> list[Endpoint]:
    """Read lines `id ip:port@bus[,hostname] flags primary ping pong epoch link-state slots...`."""
    found: list[Endpoint] = []
    for line in nodes.splitlines():
        fields = line.split(" ")
        if len(fields) < 8 or fields[0] in owning_ids:
            continue
        flags = set(fields[2].split(","))
        if "master" not in flags or flags & {"fail", "fail?", "handshake", "noaddr"}:
            continue
        place = fields[1].partition(",")[0].partition("@")[0]
        host, _, port = place.rpartition(":")
        if port.isascii() and port.isdigit() and 0 < int(port) <= 65_535:
            found.append(Endpoint(host=_host(host, asked), port=int(port)))
    return found
