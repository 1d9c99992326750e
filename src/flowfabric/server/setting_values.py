"""Reading one setting's text: addresses, tokens, lists, numbers, choices.

Each reader takes where the text was said and the text, and answers the value or refuses with `Misuse` that names the
place. What must stay true: nothing said about a token quotes it.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flowfabric.contract import ids
from flowfabric.contract.errors import InvalidInput, Misuse

Address = tuple[str, int]

LISTEN_DEFAULT: Final = "127.0.0.1:9090"
LANES_MAX: Final = 1_000
ORIGINS_MAX: Final = 100
TOKENS_MAX: Final = 16
TOKEN_LENGTH_MIN: Final = 16
TOKEN_LENGTH_MAX: Final = 4_096
SECRET_FILE_BYTES_MAX: Final = 65_536
_NUMBER: Final = re.compile(r"[0-9]{1,16}")
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
_TOKEN: Final = re.compile(r"[!-+\--~]+")
_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]{0,31})://(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::([0-9]{1,5}))?"
)
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


def misuse(where: str, what: str, next_step: str | None = None) -> Misuse:
    """Return the refusal of a setting, with what to do next if there is something better than to correct it."""
    details = {"setting": where} if next_step is None else {"setting": where, "next": next_step}
    return Misuse(f"{where} {what}", **details)


# Addresses --------------------------------------------------------------------------------------------------------


def read_address(where: str, text: str) -> Address:
    """Read `host:port`, the host in brackets if it is IPv6."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or "]" in port or (":" in host and not host.startswith("[")):
        raise misuse(
            where,
            f"must be an address and a port, not {ids.clip(text)!r}",
            f"write {LISTEN_DEFAULT}, or [::1]:9090 for IPv6; 0.0.0.0:9090 is every IPv4 address",
        )
    if host.startswith("[") and not (host.endswith("]") and ":" in host):
        raise misuse(where, f"has brackets that hold no IPv6 address: {ids.clip(text)!r}")
    return read_host(where, host.removeprefix("[").removesuffix("]")), integer(0, 65_535, "the port of ")(
        where, port
    )


def read_host(where: str, text: str) -> str:
    """Read an address without brackets, or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        # What looks like a number is a mistyped address, not a name.
        if _HOST.fullmatch(text) is None or text.replace(".", "").isdigit():
            raise misuse(where, f"names no host: {ids.clip(text)!r}", f"write {LISTEN_DEFAULT}") from error
    return text


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address; a name other than localhost counts as public."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_metrics_address(where: str, text: str) -> Address:
    """Read an address that only this machine can reach."""
    host, port = read_address(where, text)
    if not is_loopback(host):
        raise misuse(
            where,
            f"must be a loopback address, because it asks for no token; {host} is not",
            "write 127.0.0.1:9091, or scrape /metrics at the server's own address with a token",
        )
    return host, port


# Tokens -----------------------------------------------------------------------------------------------------------


def read_secret_file(where: str, path: Path) -> str:
    """Return what a file holds that only its owner and group can read."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise misuse(where, f"is no regular file: {path}")
        if mode & stat.S_IRWXO:
            raise misuse(
                where, f"names a file that everybody on this machine may open: {path}", f"chmod 600 {path}"
            )
        with path.open("rb") as file:
            data = file.read(SECRET_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise misuse(where, f"cannot be read: {path}: {why}") from error
    if len(data) > SECRET_FILE_BYTES_MAX:
        raise misuse(where, f"names a file larger than {SECRET_FILE_BYTES_MAX} bytes: {path}")
    return data.decode("utf-8", "replace")


def read_token_file(where: str, path: Path) -> str:
    """Return the tokens of a file, one a line, separated by commas."""
    text = read_secret_file(where, path)
    tokens = ",".join(line.strip() for line in text.splitlines() if line.strip())
    if not tokens:
        raise misuse(where, f"names a file that holds no token: {path}")
    return tokens


def read_tokens(where: str, text: str) -> tuple[str, ...]:
    """Split and check tokens; they are never quoted in what is said about them."""
    tokens = _list(where, text, TOKENS_MAX)
    for number, token in enumerate(tokens, start=1):
        which = f"token {number} of {where}" if len(tokens) > 1 else f"the token of {where}"
        if not TOKEN_LENGTH_MIN <= len(token) <= TOKEN_LENGTH_MAX:
            raise misuse(
                which,
                f"has {len(token)} characters; it takes {TOKEN_LENGTH_MIN} to {TOKEN_LENGTH_MAX}",
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            )
        if _TOKEN.fullmatch(token) is None:
            raise misuse(which, "holds something else than printable ASCII characters without spaces")
    return tokens


# Single values ----------------------------------------------------------------------------------------------------


def _list(where: str, text: str, most: int) -> tuple[str, ...]:
    if not text:
        return ()
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise misuse(where, "has an empty entry", "separate entries by single commas")
    if len(items) > most:
        raise misuse(where, f"has {len(items)} entries; at most {most} are taken")
    if len(set(items)) != len(items):
        raise misuse(where, "names something twice")
    return items


def integer(low: int, high: int, part: str = "") -> Callable[[str, str], int]:
    """Return what reads a whole number from `low` to `high`."""

    def read(where: str, text: str) -> int:
        if _NUMBER.fullmatch(text) is None or not low <= int(text) <= high:
            raise misuse(
                f"{part}{where}", f"must be a whole number from {low} to {high}, not {ids.clip(text, 40)!r}"
            )
        return int(text)

    return read


def choice(values: tuple[str, ...], convert: Callable[[str], Any] = str) -> Callable[[str, str], Any]:
    """Return what reads one of these words, in any case."""

    def read(where: str, text: str) -> Any:
        if text.lower() not in values:
            raise misuse(where, f"must be one of {', '.join(values)}, not {ids.clip(text, 40)!r}")
        return convert(text.lower())

    return read


def read_lanes(where: str, text: str) -> tuple[str, ...]:
    """Read lanes, separated by commas."""
    lanes = _list(where, text, LANES_MAX)
    for lane in lanes:
        try:
            ids.check_lane(lane)
        except InvalidInput as error:
            raise misuse(where, f"has the lane {ids.clip(lane)!r}, but {error.message}") from error
    return lanes


def read_origins(where: str, text: str) -> tuple[str, ...]:
    """Read origins as browsers send them, or `*`, separated by commas."""
    origins = _list(where, text, ORIGINS_MAX)
    if "*" in origins and len(origins) > 1:
        raise misuse(where, "has * beside other origins", "leave the others out, or better the *")
    for origin in origins:
        if origin == "*":
            continue
        match = _ORIGIN.fullmatch(origin)
        if match is None:
            raise misuse(
                where,
                f"has {ids.clip(origin)!r}, which is not an origin",
                "write scheme://host[:port] in lower case, without a path: https://example.org",
            )
        if match[3] is not None and match[3] == _USUAL_PORTS.get(match[1]):
            raise misuse(
                where,
                f"has {origin}, but browsers leave the usual port out",
                f"write {match[1]}://{match[2]}",
            )
    return origins
