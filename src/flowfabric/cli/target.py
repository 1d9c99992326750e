"""Which server or store a command talks to: options, then the environment, then a `dev` that runs here.

`flowfabric dev` writes `.flowfabric/dev.json` beside its store and holds a lock while it runs; a file left behind by a
dead process is therefore never taken for a running one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flowfabric.contract.errors import Misuse

URL_VARIABLE: Final = "FLOWFABRIC_URL"
FOLDER: Final = ".flowfabric"
DEV_FILE: Final = "dev.json"
DEV_LOCK: Final = "dev.lock"
SERVER_DEFAULT: Final = "http://127.0.0.1:9090"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to connect to, and why it was chosen."""

    url: str
    token: str | None
    chosen_by: str

    @property
    def is_server(self) -> bool:
        """Say whether it is a server rather than a store."""
        return self.url.partition(":")[0].lower() in ("http", "https")


@dataclass(frozen=True, kw_only=True)
class RunningDev:
    """What a running `dev` wrote about itself."""

    pid: int
    url: str
    store: str
    app: str


def choose(*, server: str | None, store: str | None, token: str | None) -> Target:
    """Choose what to connect to.

    Raises: `Misuse` when both a server and a store are named, or a token goes with a store.
    """
    if server and store:
        raise Misuse(
            "give --server or --store, not both", next="a server has a store of its own: name the server"
        )
    if store and token:
        raise Misuse(
            "a store that is opened directly takes no token", next="leave --token out, or use --server"
        )
    if server and server.partition(":")[0].lower() not in ("http", "https"):
        raise Misuse(
            f"{server!r} is not a server's URL", next=f"write --server {SERVER_DEFAULT}, or --store {server}"
        )
    if store and store.partition(":")[0].lower() in ("http", "https"):
        raise Misuse(f"{store!r} is a server's URL, not a store's", next=f"write --server {store}")
    if server:
        return Target(url=server, token=token, chosen_by="--server")
    if store:
        return Target(url=store, token=None, chosen_by="--store")
    if url := os.environ.get(URL_VARIABLE):
        return Target(url=url, token=token, chosen_by=URL_VARIABLE)
    dev = find_running_dev(Path.cwd())
    if dev is not None:
        return Target(url=dev.url, token=token, chosen_by="the running dev")
    return Target(url=SERVER_DEFAULT, token=token, chosen_by="the default")


def choose_store(*, server: str | None, store: str | None) -> str:
    """Choose the store that maintenance works on: a server's URL does not name one.

    Raises: `Misuse` when no store is named and no `dev` runs here.
    """
    if store:
        return store
    url = os.environ.get(URL_VARIABLE, "")
    if not server and url and not Target(url=url, token=None, chosen_by=URL_VARIABLE).is_server:
        return url
    dev = find_running_dev(Path.cwd())
    if dev is not None and server in (None, dev.url):
        return dev.store
    raise Misuse(
        "this works on the store itself, and none is named",
        next="give --store, for example --store sqlite:///.flowfabric/dev.db, --store valkey://127.0.0.1:6379/0 or "
        "--store postgresql://127.0.0.1:5432/flowfabric",
    )


def find_running_dev(start: Path) -> RunningDev | None:
    """Find the `dev` that runs in this folder or the nearest one above."""
    for folder in (start, *start.parents):
        found = read_running_dev(folder / FOLDER)
        if found is not None:
            return found
    return None


def read_running_dev(folder: Path) -> RunningDev | None:
    """Read what a running `dev` wrote into its folder; None when none runs."""
    import json

    try:
        if not is_locked(folder / DEV_LOCK):
            return None
        document: Any = json.loads((folder / DEV_FILE).read_text(encoding="utf-8"))
        return RunningDev(
            pid=int(document["pid"]),
            url=str(document["url"]),
            store=str(document["store"]),
            app=str(document["app"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_locked(path: Path) -> bool:
    """Say whether a living process holds the lock on a file."""
    try:
        import fcntl
    except ImportError:
        return path.exists()
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def existing_store(url: str) -> str:
    """Refuse the URL of a store file that does not exist, for commands that would otherwise make an empty one.

    Raises: `Misuse` naming the file.
    """
    path = file_of(url)
    if path is not None and not path.exists():
        raise Misuse(
            f"there is no store at {path}",
            next="check the path; `flowfabric dev`, `serve` and `worker` create a store, other commands do not",
        )
    return url


async def require_store(url: str) -> str:
    """Refuse a store that does not exist, for commands that would otherwise make an empty one in a wrong place.

    A Valkey store is not looked for: making one there takes a few keys and harms nobody.
    Raises: `Misuse` naming the file or database; what the database says.
    """
    from flowfabric import backends
    from flowfabric.backends.urls import POSTGRES, kind_of

    existing_store(url)
    if kind_of(url) == POSTGRES:
        report = await backends.migrate(url, plan_only=True)
        if report.is_new:
            raise Misuse(
                f"there is no store at {report.store}",
                next="check the database's name, and ?schema= if the store has another than ff; `flowfabric migrate`, "
                "`serve`, `worker` and `submit` make a store, other commands do not",
            )
    return url


def file_of(url: str) -> Path | None:
    """Return the file a store's URL names, if it names one."""
    scheme, _, rest = url.partition("://")
    rest = rest.partition("?")[0]
    if scheme.lower() != "sqlite" or not rest.startswith("/") or rest == "/:memory:":
        return None
    return Path(rest[1:])
