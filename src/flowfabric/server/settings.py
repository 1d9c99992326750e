"""The server's settings: read from the environment and the command line, checked, never changed afterwards.

The command line beats the environment. What must stay true: a setting that would not act is refused by name with the
reason, never ignored; a server that others can reach has a token; no token or password appears in a message or a
representation.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from flowfabric.backends.urls import public_url
from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.server.setting_values import (
    LISTEN_DEFAULT,
    Address,
    choice,
    integer,
    is_loopback,
    misuse,
    read_address,
    read_host,
    read_lanes,
    read_metrics_address,
    read_origins,
    read_token_file,
    read_tokens,
)
from flowfabric.server.store_setting import STORE_DEFAULT, SWITCH, asking, read_store
from flowfabric.server.variables import PLANNED, PREFIX, RETIRED, VARIABLES, Variable
from flowfabric.telemetry.log import Format, Level

__all__ = ["PLANNED", "RETIRED", "VARIABLES", "ServerSettings", "Variable"]

T = TypeVar("T")

CONNECTIONS_DEFAULT: Final = 1_024
CONNECTIONS_MAX: Final = 65_535
STREAM_OPERATIONS_MAX: Final = 65_535

_LEVELS: Final = ("debug", "info", "warning", "error")
_FORMATS: Final = ("auto", "text", "json")
_DURABILITIES: Final = tuple(level.value for level in Durability)
_MAY_BE_EMPTY: Final = frozenset(("FF_API_TOKEN", "FF_API_TOKEN_FILE", "FF_BACKEND"))


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a server is told. Make one with `load`, which checks it."""

    store: str = STORE_DEFAULT
    """URL; may hold a password."""
    host: str = "127.0.0.1"
    port: int = 9090
    """0 takes a free one."""
    tokens: tuple[str, ...] = ()
    """Any of them lets a request in; none lets in everybody who can reach the server."""
    metrics_address: Address | None = None
    """A second address, on loopback, for `/metrics` alone."""
    cors_origins: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    """They exist from the start."""
    partitions: PartitionCounts | None = None
    """Absent: the store's own, or the defaults when it is made."""
    stream_operations: int = limits.STREAM_OPERATIONS_DEFAULT
    retention_ms: int | None = None
    require_durability: Durability | None = None
    engine: bool = True
    """Run the store's timers in this process."""
    log_level: Level = "info"
    log_format: Format = "auto"
    connections: int = CONNECTIONS_DEFAULT
    """Open at once; those that wait long are counted apart."""

    def __repr__(self) -> str:
        return f"ServerSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = {"tokens": f"<{len(self.tokens)} hidden>", "store": public_url(self.store)}
        return [(name, shown.get(name, getattr(self, name))) for name in self.__struct_fields__]

    @classmethod
    def load(cls, environ: Mapping[str, str], **overrides: Any) -> ServerSettings:
        """Read the settings; an override that is not None beats the environment.

        overrides: by field name, as values or as a variable would hold them; `listen` ("127.0.0.1:0") stands for host
            and port, `token_file` for a file with tokens.

        Raises: `Misuse`, naming the variable or override.
        """
        _refuse_variables(environ)
        given = _Given(environ, overrides)
        values: dict[str, Any] = {
            "store": read_store(given.override("store"), given.variable),
            "tokens": _tokens(given),
        }
        values["host"], values["port"] = _listen(given)
        partitions = _partitions(given)
        if partitions is not None:
            values["partitions"] = partitions
        for field, read in _READERS.items():
            found = given.find(field)
            if found is not None:
                values[field] = read(*found)
        values["store"] = asking(values["store"], values.get("require_durability"))
        settings = cls(**values)
        _check_together(settings)
        return settings


class _Given:
    """What was said about each setting: (where it was said, the text)."""

    def __init__(self, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
        known = {*ServerSettings.__struct_fields__, "listen", "token_file"}
        for name in overrides:
            if name not in known:
                raise Misuse(f"there is no setting {name!r}; there are {', '.join(sorted(known))}")
        self._overrides = {name: value for name, value in overrides.items() if value is not None}
        self._environ = environ
        self._variables = {variable.field: name for name, variable in VARIABLES.items()}

    def variable(self, name: str) -> tuple[str, str] | None:
        """Return a variable and its text; None when it is not set, or empty and may be."""
        text = self._environ.get(name)
        if text is None:
            return None
        if not text.strip():
            if name in _MAY_BE_EMPTY:
                return None
            raise misuse(name, "is set but empty", f"give it a value or unset {name}")
        return name, text.strip()

    def override(self, field: str) -> tuple[str, str] | None:
        """Return an override as text."""
        if field not in self._overrides:
            return None
        value = self._overrides[field]
        if field == "metrics_address" and isinstance(value, tuple):
            host, port = cast("tuple[object, object]", value)
            return field, f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
        return field, _as_text(value)

    def find(self, field: str) -> tuple[str, str] | None:
        """Return what counts for a setting that one variable sets."""
        name = self._variables.get(field)
        return self.override(field) or (self.variable(name) if name is not None else None)

    def typed(self, field: str, kind: type[T]) -> T | None:
        """Return an override that is of this type already."""
        value = self._overrides.get(field)
        if value is not None and not isinstance(value, kind):
            raise misuse(field, f"must be {kind.__name__}")
        return value


def _as_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(_as_text(item) for item in cast("tuple[Any, ...]", value))
    return str(value)


# Names ------------------------------------------------------------------------------------------------------------


def _refuse_variables(environ: Mapping[str, str]) -> None:
    """Refuse the first variable, by name, that would not act."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in VARIABLES:
            continue
        if name in RETIRED:
            raise misuse(name, f"no longer acts: {RETIRED[name]}", f"unset {name}")
        if name in PLANNED:
            raise misuse(name, f"belongs to {PLANNED[name]}, planned for a later version", f"unset {name}")
        raise misuse(name, "is not a setting of the server" + _nearest(name), f"correct or unset {name}")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(VARIABLES)}"


# What several variables say ---------------------------------------------------------------------------------------


def _partitions(given: _Given) -> PartitionCounts | None:
    typed = given.typed("partitions", PartitionCounts)
    if typed is not None:
        return typed
    counts: dict[str, int] = {}
    for family in ("flow", "budget", "quota"):
        found = given.variable(f"FF_{family.upper()}_PARTITIONS")
        if found is not None:
            counts[family] = integer(1, limits.PARTITIONS_MAX)(*found)
    return PartitionCounts(**counts) if counts else None


def _listen(given: _Given) -> Address:
    found = given.find("listen")
    host, port = read_address(*found) if found is not None else read_address("listen", LISTEN_DEFAULT)
    host_only = given.override("host")
    if host_only is not None:
        host = read_host(*host_only)
    port_only = given.override("port")
    if port_only is not None:
        port = integer(0, 65_535)(*port_only)
    return host, port


def _tokens(given: _Given) -> tuple[str, ...]:
    said = given.override("tokens"), given.override("token_file")
    if said == (None, None):
        said = given.variable("FF_API_TOKEN"), given.variable("FF_API_TOKEN_FILE")
    direct, file = said
    if direct is not None and file is not None:
        raise misuse(direct[0], f"and {file[0]} both give tokens", "give one of the two")
    if file is not None:
        where, path = file
        return read_tokens(where, read_token_file(where, Path(path)))
    return read_tokens(*direct) if direct is not None else ()


_READERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "metrics_address": read_metrics_address,
    "cors_origins": read_origins,
    "lanes": read_lanes,
    "stream_operations": integer(1, STREAM_OPERATIONS_MAX),
    "retention_ms": integer(0, limits.DURATION_MAX_MS),
    "require_durability": choice(_DURABILITIES, Durability),
    "engine": choice(tuple(SWITCH), SWITCH.__getitem__),
    "log_level": choice(_LEVELS),
    "log_format": choice(_FORMATS),
    "connections": integer(1, CONNECTIONS_MAX),
}


def _check_together(settings: ServerSettings) -> None:
    """Refuse settings that are right by themselves but not together."""
    if not settings.tokens and not is_loopback(settings.host):
        raise Misuse(
            f"{settings.host} can be reached from other machines, and FF_API_TOKEN is not set",
            setting="FF_LISTEN_ADDR",
            next=f"set FF_API_TOKEN (or FF_API_TOKEN_FILE), or listen on {LISTEN_DEFAULT}",
        )
    if settings.tokens and "*" in settings.cors_origins:
        raise misuse(
            "FF_CORS_ORIGINS", "is * while a token is set", "name the origins that may call, or none at all"
        )
    own = (settings.host, settings.port)
    if settings.metrics_address == own and settings.port != 0:
        raise misuse("FF_METRICS_ADDR", "is the server's own address", "/metrics is served there anyway")
