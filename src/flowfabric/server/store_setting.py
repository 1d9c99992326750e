"""Which store a server is told to open: one URL, made of FF_STORE or of the variables that name its parts.

`--store` beats them all, but for credentials, which a command line must not carry: user and password are added to
whatever URL has none, and so is what a URL does not say about the number of connections. What must stay true: a
variable that would not act is refused by name, and nothing said about a password quotes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flowfabric.backends.urls import (
    POSTGRES,
    SQLITE,
    VALKEY,
    has_credentials,
    kind_of,
    public_url,
    with_credentials,
    with_option,
)
from flowfabric.contract import ids
from flowfabric.contract.states import Durability
from flowfabric.server.setting_values import choice, integer, misuse, read_host, read_secret_file

STORE_DEFAULT: Final = "sqlite:///.flowfabric/flowfabric.db"
HOST_DEFAULT: Final = "localhost"
PORT_DEFAULT: Final = 6_379
DATABASE_MAX: Final = 65_535
HOSTS_MAX: Final = 100
POOL_SIZE_MAX: Final = 1_000
SWITCH: Final = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}
_WHERE: Final = ("FF_HOST", "FF_PORT", "FF_TLS", "FF_TLS_CA", "FF_CLUSTER", "FF_DATABASE")
_WHO: Final = ("FF_USER", "FF_PASSWORD", "FF_PASSWORD_FILE")
_POOL_SIZE: Final = "FF_POSTGRES_POOL_SIZE"
_NAMES: Final = {SQLITE: ("FF_SQLITE_PATH",), VALKEY: _WHERE, POSTGRES: ("FF_POSTGRES_URL",)}
"""The variables that name each kind of store, when FF_STORE does not."""
_MORE: Final = {SQLITE: (), VALKEY: _WHO, POSTGRES: (*_WHO, _POOL_SIZE)}
"""Those that add something to its URL."""
_TITLES: Final = {SQLITE: "SQLite", VALKEY: "Valkey", POSTGRES: "Postgres"}
_FORMS: Final = (
    "write sqlite:///file.db, valkey://host:port/0, valkey+cluster://host:port,host:port or "
    "postgresql://host:port/database"
)

Said = tuple[str, str]
"""Where something was said, and the text."""
Find = Callable[[str], Said | None]
"""Returns a variable and its text, None when it is not set."""


def read_store(override: Said | None, variable: Find) -> str:
    """Return the store's URL.

    Raises: `Misuse`, naming the variable or override.
    """
    if override is not None:
        return _completed(_checked(*override), variable)
    said, kind = variable("FF_STORE"), _kind(variable("FF_BACKEND"))
    if said is not None:
        for name in (name for names in _NAMES.values() for name in names):
            if variable(name) is not None:
                raise misuse("FF_STORE", f"and {name} both name a store", "unset one of the two")
        url = _checked(*said)
        if kind is not None and kind_of(url) != kind:
            raise misuse("FF_STORE", f"does not agree with FF_BACKEND={kind}", "unset FF_BACKEND")
        kind = kind_of(url)
    elif kind == VALKEY:
        url = _from_parts(variable)
    elif kind == POSTGRES:
        url = _postgres(variable("FF_POSTGRES_URL"))
    else:
        url = _sqlite(variable("FF_SQLITE_PATH"))
    _refuse_others(kind or SQLITE, variable)
    return _completed(url, variable)


def _refuse_others(kind: str, variable: Find) -> None:
    """Refuse what belongs to another kind of store and would not act.

    Raises: `Misuse`.
    """
    acting = {*_NAMES.get(kind, ()), *_MORE.get(kind, ())}
    for others in (_NAMES, _MORE):
        for name in (name for names in others.values() for name in names):
            if name in acting or variable(name) is None:
                continue
            owners = [other for other in _TITLES if name in (*_NAMES[other], *_MORE[other])]
            raise misuse(
                name,
                f"is for {' and '.join(_TITLES[owner] for owner in owners)}, and the store is not",
                f"set {' or '.join(f'FF_BACKEND={owner}' for owner in owners)}, or unset {name}",
            )


def _completed(url: str, variable: Find) -> str:
    """Return the URL with what is said apart from it."""
    match kind_of(url):
        case kind if kind == VALKEY:
            return _with_credentials(url, variable)
        case kind if kind == POSTGRES:
            return _with_pool_size(_with_credentials(url, variable), variable)
        case _:
            return url


def asking(url: str, required: Durability | None) -> str:
    """Return the URL of a store whose acknowledgements wait for a replica, if that is what must be promised."""
    if (
        required is not Durability.REPLICATED
        or kind_of(url) != VALKEY
        or "durability=" in url.partition("?")[2]
    ):
        return url
    return with_option(url, "durability", Durability.REPLICATED.value)


def _checked(where: str, text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise misuse(where, f"is not a URL: {ids.clip(text)!r}", _FORMS)
    if scheme in ("redis", "rediss"):
        raise misuse(where, "names a Redis, and FlowFabric runs on Valkey", "write valkey://host:port/0")
    return text


def _kind(said: Said | None) -> str | None:
    if said is None:
        return None
    where, text = said
    kind = text.lower()
    if kind not in _TITLES:
        raise misuse(where, f"must be sqlite, valkey or postgres, not {ids.clip(text)!r}")
    return kind


def _sqlite(said: Said | None) -> str:
    if said is None:
        return STORE_DEFAULT
    name, text = said
    if "\x00" in text or text.endswith("/"):
        raise misuse(name, "names no file")
    return "sqlite:///" + quote(text, safe="/:")


# Valkey -----------------------------------------------------------------------------------------------------------


def _from_parts(variable: Find) -> str:
    """Make a URL of host, port, TLS, cluster and database."""

    def switch(name: str) -> bool:
        said = variable(name)
        return said is not None and choice(tuple(SWITCH), SWITCH.__getitem__)(*said)

    is_cluster, is_tls = switch("FF_CLUSTER"), switch("FF_TLS")
    said = variable("FF_PORT")
    port = PORT_DEFAULT if said is None else integer(1, 65_535)(*said)
    where, text = variable("FF_HOST") or ("FF_HOST", HOST_DEFAULT)
    hosts = [read_host(where, host.strip().removeprefix("[").removesuffix("]")) for host in text.split(",")]
    if len(hosts) > (HOSTS_MAX if is_cluster else 1):
        raise misuse(where, "names several hosts", "one is enough, or set FF_CLUSTER=true if it is a cluster")
    seeds = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
    scheme = ("valkeys" if is_tls else "valkey") + ("+cluster" if is_cluster else "")
    said = variable("FF_DATABASE")
    database = 0 if said is None else integer(0, DATABASE_MAX)(*said)
    if is_cluster and database:
        raise misuse("FF_DATABASE", "is not 0, and a cluster has no other", "unset FF_DATABASE")
    url = f"{scheme}://{seeds}" + ("" if is_cluster else f"/{database}")
    authority = variable("FF_TLS_CA")
    if authority is None:
        return url
    if not is_tls:
        raise misuse("FF_TLS_CA", "is set, but FF_TLS is not", "set FF_TLS=true, or unset FF_TLS_CA")
    return with_option(url, "ca", quote(authority[1], safe="/"))


# Postgres ---------------------------------------------------------------------------------------------------------


def _postgres(said: Said | None) -> str:
    if said is None:
        raise misuse(
            "FF_BACKEND",
            "is postgres, and nothing says where it is",
            "set FF_POSTGRES_URL, or FF_STORE instead",
        )
    where, url = said
    if kind_of(url) != POSTGRES:
        raise misuse(where, "is not a Postgres URL", "write postgresql://host:port/database")
    return url


def _with_pool_size(url: str, variable: Find) -> str:
    said = variable(_POOL_SIZE)
    if said is None:
        return url
    if any(part.partition("=")[0] == "pool_size" for part in url.partition("?")[2].split("&")):
        raise misuse(
            _POOL_SIZE, "and the store's URL (pool_size) both say how many connections", f"unset {_POOL_SIZE}"
        )
    return with_option(url, "pool_size", str(integer(1, POOL_SIZE_MAX)(*said)))


# Who asks ---------------------------------------------------------------------------------------------------------


def _with_credentials(url: str, variable: Find) -> str:
    user, password, file = (variable(name) for name in _WHO)
    given = user or password or file
    if given is None:
        return url
    named = _named_user(url)
    if named is not None and user is None:
        # Who it is may be said openly.
        scheme, _, rest = url.partition("://")
        return with_credentials(
            f"{scheme}://{rest.partition('@')[2]}", named, quote(_secret(variable), safe="")
        )
    if has_credentials(url):
        raise misuse(
            given[0], f"and the store's URL ({public_url(url)}) both say who asks", f"unset {given[0]}"
        )
    return with_credentials(
        url, quote(user[1], safe="") if user is not None else "", quote(_secret(variable), safe="")
    )


def _named_user(url: str) -> str | None:
    """Return the user that a URL of Postgres names without a password; None when it does not."""
    netloc = url.partition("://")[2].partition("/")[0].partition("?")[0]
    user, separator, _ = netloc.partition("@")
    return user if kind_of(url) == POSTGRES and separator and user and ":" not in user else None


def _secret(variable: Find) -> str:
    """Return the password, given as it is or by its file."""
    _, password, file = (variable(name) for name in _WHO)
    if password is not None and file is not None:
        raise misuse("FF_PASSWORD", "and FF_PASSWORD_FILE both give the password", "unset one of the two")
    if file is not None:
        where, path = file
        secret = read_secret_file(where, Path(path)).rstrip("\r\n")
        if not secret or "\n" in secret:
            raise misuse(where, f"must name a file with one line, the password: {path}")
        return secret
    if password is None:
        raise misuse("FF_USER", "needs a password", "set FF_PASSWORD or FF_PASSWORD_FILE")
    return password[1]
