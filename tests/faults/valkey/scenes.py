"""What is done to Valkey servers in the fault tests.

Roles are always asked of the servers: after a failover nodes have changed theirs.
"""

from __future__ import annotations

from flowfabric.backends.valkey import keys
from tests.faults.load import Load
from tests.faults.scenes import blocking
from tests.valkey.servers import Cluster, Node, eventually


async def kill_and_start(node: Node) -> None:
    """Kill a server and start it again at once."""

    def act() -> None:
        node.kill()
        node.start()

    await blocking(act)


async def kill_primary(cluster: Cluster, slot: int) -> None:
    """Kill the primary of a slot, wait until its replica has taken over, start it again, wait until all is whole."""

    def act() -> None:
        primary = cluster.owner(slot)
        cluster.kill_primary(primary)
        primary.start()
        cluster.wait_whole()

    await blocking(act)


async def hang_primary(cluster: Cluster, slot: int) -> None:
    """Stop the primary of a slot in its tracks until its replica has taken over, then let it go on."""

    def act() -> None:
        primary = cluster.owner(slot)
        (replica,) = cluster.replicas_of(primary)
        others = [node for node in cluster.nodes if node is not primary]
        primary.hang_up()
        primary.pause()
        try:
            eventually(replica.is_primary, "the replica takes over")
            eventually(
                lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in others),
                "the others serve all slots",
            )
        finally:
            primary.resume()
        cluster.wait_whole()

    await blocking(act)


async def sweep(load: Load, global_node: Node) -> None:
    """Have hints compared with indexes now, whoever did so last; by itself it happens every half minute."""
    await blocking(lambda: global_node.call("DEL", keys.SWEEPER, keys.SWEPT))
    await load.backend.timers.sweep()
