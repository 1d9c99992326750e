"""Where a Valkey is and how to be let in, as one URL.

    valkey://user:password@host:port/database            one server
    valkeys://host:port?ca=ca.pem&cert=c.pem&key=k.pem   the same over TLS; `insecure=1` trusts any certificate
    valkey+unix:///run/valkey.sock?db=0&user=u&password=p
    valkey+cluster://user:password@host:port,host:port   a cluster, by some of its nodes; valkeys+cluster:// over TLS

User and password are percent-encoded where they must be. No message and no representation shows them: everything
that is logged or printed uses `public_url`.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from flowfabric.contract.errors import Misuse

PORT_DEFAULT: Final = 6379
DATABASE_MAX: Final = 65_535

_SCHEMES: Final = ("valkey", "valkeys", "valkey+unix", "valkey+cluster", "valkeys+cluster")
_TLS_KEYS: Final = ("ca", "cert", "key", "insecure")
_UNIX_KEYS: Final = ("db", "user", "password")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?")


class Endpoint(msgspec.Struct, frozen=True):
    """One listening socket: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def name(self) -> str:
        """Return `host:port` (IPv6 in brackets) or the path."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(msgspec.Struct, frozen=True):
    """Files (PEM) of the authority to trust and of our own certificate; empty means the system's, or none."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    insecure: bool = False


class Address(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """Where a Valkey is and how to be let in; a cluster has one or more seeds, anything else exactly one."""

    seeds: tuple[Endpoint, ...]
    is_cluster: bool = False
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None

    @property
    def public_url(self) -> str:
        """Return the URL without user, password and the query: fit for logs and messages."""
        if self.seeds[0].path:
            return f"valkey+unix://{self.seeds[0].path}?db={self.database}"
        scheme = "valkeys" if self.tls else "valkey"
        if self.is_cluster:
            return f"{scheme}+cluster://{','.join(seed.name for seed in self.seeds)}"
        return f"{scheme}://{self.seeds[0].name}/{self.database}"

    def __repr__(self) -> str:
        return f"Address({self.public_url!r})"


def parse_url(url: str) -> Address:
    """Read one of the five forms of URL.

    Raises: Misuse when anything about it is malformed, unknown or contradictory; the message shows no password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise Misuse(f"a Valkey URL begins with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    if "#" in rest or any(character <= " " for character in rest):
        raise Misuse("a Valkey URL has no '#', space or control character: percent-encode them (%23, %20)")
    location, _, query = rest.partition("?")
    if "@" in query and scheme != "valkey+unix":
        raise Misuse("a '?' in a user or password is written %3F, an '@' in an option %40")
    options = _options(scheme, query)
    if scheme == "valkey+unix":
        return _unix(location, options)
    authority, _, path = location.partition("/")
    if "@" in path:
        raise Misuse("a '/' in a user or password is written %2F")
    credentials, at, hosts = authority.rpartition("@")
    username, password = _credentials(credentials) if at else (None, None)
    is_cluster = scheme.endswith("+cluster")
    seeds = tuple(_endpoint(part) for part in hosts.split(","))
    if is_cluster and path:
        raise Misuse("a cluster has no database numbers: remove what follows the last '/' of the URL")
    if not is_cluster and len(seeds) > 1:
        raise Misuse(f"several hosts are for clusters: write {scheme}+cluster://host:port,host:port")
    return Address(
        seeds=seeds,
        is_cluster=is_cluster,
        database=_database(path),
        username=username,
        password=password,
        tls=_tls(options) if scheme.startswith("valkeys") else None,
    )


def _unix(location: str, options: dict[str, str]) -> Address:
    if not location.startswith("/") or location.endswith("/"):
        raise Misuse("a socket's URL is valkey+unix:///absolute/path.sock (three slashes)")
    if options.get("user") and not options.get("password"):
        raise Misuse("a user needs a password: valkey+unix:///path.sock?user=name&password=secret")
    return Address(
        seeds=(Endpoint(path=unquote(location)),),
        database=_database(options.get("db", "")),
        username=options.get("user") or None,
        password=options.get("password") or None,
    )


def _options(scheme: str, query: str) -> dict[str, str]:
    known = _UNIX_KEYS if scheme == "valkey+unix" else _TLS_KEYS if scheme.startswith("valkeys") else ()
    try:
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise Misuse("the part after '?' in a Valkey URL is name=value&name=value") from error
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            allowed = f"it takes {', '.join(known)}" if known else "it takes none"
            raise Misuse(f"a {scheme}:// URL has no option {name[:20]!r}: {allowed}")
        if name in options:
            raise Misuse(f"the option {name!r} is given twice in the URL")
        options[name] = value
    return options


def _credentials(part: str) -> tuple[str | None, str | None]:
    username, _, password = part.partition(":")
    if username and not password:
        raise Misuse("a user needs a password: valkey://user:password@host (or valkey://:password@host)")
    return unquote(username) or None, unquote(password) or None


def _endpoint(part: str) -> Endpoint:
    if part.startswith("["):
        host, bracket, after = part[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise Misuse("an IPv6 address is written in brackets: valkey://[::1]:6379")
        port = after[1:] if after else str(PORT_DEFAULT)
    else:
        host, colon, port = part.partition(":")
        port = port if colon else str(PORT_DEFAULT)
    if not _HOST.fullmatch(host):
        raise Misuse(
            "each host of a Valkey URL is a name or an address (IPv6 in brackets): valkey://host:port"
        )
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise Misuse("a port is a number from 1 to 65535: valkey://host:6379")
    return Endpoint(host=host, port=int(port))


def _database(part: str) -> int:
    if not part:
        return 0
    if not (part.isascii() and part.isdigit() and len(part) <= 5 and int(part) <= DATABASE_MAX):
        raise Misuse("a database is a number such as 0: valkey://host:port/0")
    return int(part)


def _tls(options: dict[str, str]) -> Tls:
    insecure = options.get("insecure", "0")
    if insecure not in {"0", "1"}:
        raise Misuse("insecure is 0 or 1")
    if options.get("key") and not options.get("cert"):
        raise Misuse("key= belongs to a client certificate: give cert= as well")
    return Tls(
        ca=options.get("ca", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
        insecure=insecure == "1",
    )
