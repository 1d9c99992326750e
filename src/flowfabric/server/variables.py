"""The server's environment variables: those that act, those that no longer do, those that are planned.

Data only: `flowfabric.server.settings` reads and refuses by these tables, and the configuration reference is written
from them. What must stay true: every published `FF_*` variable is in exactly one of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from flowfabric.contract import limits


class Variable(NamedTuple):
    """One variable that acts."""

    field: str
    """The field of `ServerSettings` it sets."""
    default: str
    """As text, for people; empty when there is none."""
    meaning: str


PREFIX: Final = "FF_"

VARIABLES: Final[Mapping[str, Variable]] = {
    "FF_STORE": Variable(
        "store",
        "sqlite:///.flowfabric/flowfabric.db",
        "The store's URL: sqlite:///relative.db, sqlite:////absolute.db or sqlite:///:memory:; valkey://host:port/0, "
        "valkey+cluster://host:port,host:port or valkey+unix:///path.sock, with TLS valkeys:// or valkeys+cluster://; "
        "postgresql://host:port/database.",
    ),
    "FF_BACKEND": Variable(
        "store", "sqlite", "The kind of store, when FF_STORE does not name one: sqlite, valkey or postgres."
    ),
    "FF_SQLITE_PATH": Variable(
        "store",
        ".flowfabric/flowfabric.db",
        "The SQLite file, when FF_STORE does not name one; :memory: keeps nothing.",
    ),
    "FF_HOST": Variable(
        "store",
        "localhost",
        "With FF_BACKEND=valkey: its host. Of a cluster, some of its nodes, separated by commas.",
    ),
    "FF_PORT": Variable("store", "6379", "With FF_BACKEND=valkey: its port."),
    "FF_TLS": Variable("store", "false", "With FF_BACKEND=valkey: whether to use TLS."),
    "FF_TLS_CA": Variable(
        "store", "", "With FF_TLS: the file (PEM) of the authority to trust. Not set: the system's."
    ),
    "FF_CLUSTER": Variable("store", "false", "With FF_BACKEND=valkey: whether it is a cluster."),
    "FF_DATABASE": Variable(
        "store", "0", "With FF_BACKEND=valkey: the number of the database; a cluster has only 0."
    ),
    "FF_POSTGRES_URL": Variable(
        "store",
        "",
        "With FF_BACKEND=postgres: its URL, postgresql://host:port/database; it may be given as FF_STORE just as well.",
    ),
    "FF_POSTGRES_POOL_SIZE": Variable(
        "store",
        "10",
        "The most connections to Postgres that one process opens, 1 to 1000, when the store's URL does not say "
        "(?pool_size=); one more listens. Workers that open the store themselves read it, too.",
    ),
    "FF_USER": Variable(
        "store", "", "The user to be for Valkey or Postgres, when the store's URL names none."
    ),
    "FF_PASSWORD": Variable(
        "store", "", "The password for Valkey or Postgres, when the store's URL holds none."
    ),
    "FF_PASSWORD_FILE": Variable(
        "store",
        "",
        "A file with that password, one line, that only its owner and group can read; instead of FF_PASSWORD.",
    ),
    "FF_LISTEN_ADDR": Variable(
        "listen",
        "127.0.0.1:9090",
        "Address and port to listen on, IPv6 in brackets ([::1]:9090); port 0 takes a free one. "
        "An address that others can reach needs a token.",
    ),
    "FF_API_TOKEN": Variable(
        "tokens",
        "",
        "The token that clients send, at least 16 printable ASCII characters; several, separated by commas, "
        "so that it can be rotated. Set but empty is the same as not set.",
    ),
    "FF_API_TOKEN_FILE": Variable(
        "token_file",
        "",
        "A file with the tokens, one a line, that only its owner and group can read; instead of FF_API_TOKEN.",
    ),
    "FF_METRICS_ADDR": Variable(
        "metrics_address",
        "",
        "A second address, on loopback, that serves /metrics without a token.",
    ),
    "FF_CORS_ORIGINS": Variable(
        "cors_origins",
        "",
        "Origins whose pages may call the server, as scheme://host[:port], separated by commas; "
        "* is every origin and cannot go with a token. Not set: none.",
    ),
    "FF_LANES": Variable(
        "lanes",
        "",
        "Lanes, separated by commas, that exist from the start; any other exists from its first use.",
    ),
    "FF_FLOW_PARTITIONS": Variable(
        "partitions",
        str(limits.FLOW_PARTITIONS_DEFAULT),
        "Flow partitions, fixed when the store is made; a count that differs from the store's is refused.",
    ),
    "FF_BUDGET_PARTITIONS": Variable(
        "partitions",
        str(limits.BUDGET_PARTITIONS_DEFAULT),
        "Budget partitions, fixed when the store is made.",
    ),
    "FF_QUOTA_PARTITIONS": Variable(
        "partitions", str(limits.QUOTA_PARTITIONS_DEFAULT), "Quota partitions, fixed when the store is made."
    ),
    "FF_MAX_CONCURRENT_STREAM_OPS": Variable(
        "stream_operations",
        str(limits.STREAM_OPERATIONS_DEFAULT),
        "Stream reads served at once; one more is answered 429. Waiting tails are not counted.",
    ),
    "FF_RETENTION_MS": Variable(
        "retention_ms",
        str(limits.RETENTION_DEFAULT_MS),
        "How long a finished execution is kept when neither it nor its kind says.",
    ),
    "FF_REQUIRE_DURABILITY": Variable(
        "require_durability",
        "",
        "The least that an acknowledgement must promise, or the server does not start: memory, fsync, replicated. "
        "With replicated, Valkey is made to wait for a replica; Postgres is asked how it is set.",
    ),
    "FF_ENGINE": Variable(
        "engine", "on", "Whether this process runs the store's timers: on or off. Several may; one must."
    ),
    "FF_LOG_LEVEL": Variable("log_level", "info", "debug, info, warning or error."),
    "FF_LOG_FORMAT": Variable(
        "log_format", "auto", "text, json, or auto: text on a terminal, JSON lines otherwise."
    ),
}
"""Every variable that acts."""

_PUSHED: Final = "timers fire at their instant from one due-time index, so there is no interval to set"
_CHECKED: Final = "the check runs inside each operation, so there is no scan to time"
_AT_ONCE: Final = "a cancel continues at once, not at the next interval"

RETIRED: Final[Mapping[str, str]] = {
    "FF_LEASE_EXPIRY_INTERVAL_MS": _PUSHED,
    "FF_DELAYED_PROMOTER_INTERVAL_MS": _PUSHED,
    "FF_ATTEMPT_TIMEOUT_INTERVAL_S": _PUSHED,
    "FF_EXECUTION_DEADLINE_INTERVAL_S": _PUSHED,
    "FF_SUSPENSION_TIMEOUT_INTERVAL_S": _PUSHED,
    "FF_PENDING_WP_EXPIRY_INTERVAL_S": _PUSHED,
    "FF_RETENTION_TRIMMER_INTERVAL_S": _PUSHED,
    "FF_BUDGET_RESET_INTERVAL_S": _PUSHED,
    "FF_BUDGET_RECONCILER_INTERVAL_S": _CHECKED,
    "FF_QUOTA_RECONCILER_INTERVAL_S": _CHECKED,
    "FF_INDEX_RECONCILER_INTERVAL_S": (
        "index and record change in one transaction; `flowfabric admin fsck` checks that they agree"
    ),
    "FF_UNBLOCK_INTERVAL_S": "blocked work is released by the event that unblocks it",
    "FF_DEPENDENCY_RECONCILER_INTERVAL_S": "dependencies resolve in the step that ends the upstream",
    "FF_FLOW_PROJECTOR_INTERVAL_S": "a flow's state is kept with it, not sampled",
    "FF_CANCEL_RECONCILER_INTERVAL_S": _AT_ONCE,
    "FF_EDGE_CANCEL_DISPATCHER_INTERVAL_S": _AT_ONCE,
    "FF_EDGE_CANCEL_RECONCILER_INTERVAL_S": _AT_ONCE,
    "FF_MAX_CONCURRENT_TAIL": "it is called FF_MAX_CONCURRENT_STREAM_OPS",
    "FF_FORCE_LUA_RELOAD": "functions are named by their content, so there is nothing to reload",
    "FF_SQLITE_POOL_SIZE": "SQLite has one writer, and readers as they are needed",
    "FF_PG_TEST_URL": "the tests start servers of their own",
    "FF_DEV_MODE": "SQLite needs no permission; `flowfabric dev` is for development",
    "FF_ENV": "nothing depends on the name of an environment",
    "FF_BACKEND_ACCEPT_UNREADY": "every operation works on every store",
}
"""Published variables that no longer act, and why."""

_SIGNALS: Final = "signals"
_SENTRY: Final = "error reporting to Sentry"

PLANNED: Final[Mapping[str, str]] = {
    "FF_WAITPOINT_HMAC_SECRET": _SIGNALS,
    "FF_WAITPOINT_HMAC_GRACE_MS": _SIGNALS,
    "FF_SENTRY_DSN": _SENTRY,
    "FF_SENTRY_ENVIRONMENT": _SENTRY,
    "FF_SENTRY_RELEASE": _SENTRY,
}
"""Published variables of what is planned, and what that is."""
