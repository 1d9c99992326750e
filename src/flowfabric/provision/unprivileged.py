"""Servers that refuse to be root: whom one runs as when root starts it, and where that user finds what it needs.

What the user cannot reach where it is (below a root's home, say) is kept or copied where it can. What must stay true:
nobody else can read such data or change such programs; what was kept for a temporary folder goes when that is gone.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.provision.processes import User

USERS: Final = ("postgres", "nobody")
"""Whom a server that root starts runs as: the first there is."""
SHARED: Final = ("/var/tmp", "/tmp")  # noqa: S108 -- what is made there has a name nobody can guess, or is checked
"""Where things are kept that the server's user cannot reach in their place."""
ELSEWHERE: Final = "flowfabric-server-"
"""How the names of folders with data there start."""
PROGRAMS: Final = "flowfabric-programs-"
ORIGIN: Final = "kept-for"
"""The file in such a folder that says which link leads to it."""
TRY_TIMEOUT_S: Final = 20.0


@cache
def server_user() -> User:
    """Return whom the server is to run as.

    Raises: `Misuse` when this is root and there is nobody else.
    """
    if os.geteuid() != 0:
        return User()
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return User.other(found.pw_uid, found.pw_gid)
    raise Misuse("the server does not run as root, and this machine has no user postgres or nobody")


def give(path: Path, user: User) -> None:
    """Make a file or folder a user's."""
    if user.uid is not None and user.gid is not None:
        os.chown(path, user.uid, user.gid)


def _may(user: User, command: list[str]) -> bool:
    """Say whether a command succeeds when a user runs it."""
    try:
        done = subprocess.run(  # noqa: S603 -- `test`, or the server's own program
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TRY_TIMEOUT_S,
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            cwd=user.folder,
        )
    except OSError:
        return False
    return done.returncode == 0


def _within_reach(user: User) -> Path:
    """Return a folder that a user can reach.

    Raises: `Unavailable` when there is none.
    """
    for name in SHARED:
        if _may(user, ["/bin/sh", "-c", 'test -x "$1"', "sh", name]):
            return Path(name)
    raise Unavailable(f"the user that the server is to run as reaches none of {', '.join(SHARED)}")


def place_for(wanted: Path, user: User) -> Path:
    """Return the folder that holds a server's data, made if missing: the wanted one, or the one that it links to."""
    if wanted.exists():
        return wanted.resolve()
    wanted.unlink(missing_ok=True)
    if user.uid is None or _may(user, ["/bin/sh", "-c", 'test -x "$1"', "sh", str(wanted.parent.absolute())]):
        wanted.mkdir(mode=0o700)
        made = wanted.resolve()
    else:
        shared = _within_reach(user)
        _sweep(shared)
        made = Path(tempfile.mkdtemp(prefix=ELSEWHERE, dir=shared))
        wanted.symlink_to(made)
        (made / ORIGIN).write_text(str(wanted.absolute()))
    give(made, user)
    return made


def _sweep(shared: Path) -> None:
    """Remove what is kept here for folders that were temporary and are gone, however their servers ended."""
    temporary = (*SHARED, tempfile.gettempdir())
    for made in shared.glob(f"{ELSEWHERE}*"):
        try:
            origin = Path((made / ORIGIN).read_text())
        except (OSError, UnicodeDecodeError):
            continue
        if any(origin.is_relative_to(folder) for folder in temporary) and origin.resolve() != made.resolve():
            shutil.rmtree(made, ignore_errors=True)


@cache
def programs_for(binaries: Path, program: str) -> Path:
    """Return the folder of programs to start: a copy, if the server's user cannot run the one that is named.

    Raises: `Unavailable` when a copy cannot be had.
    """
    user = server_user()
    if user.uid is None or _may(user, [str(binaries / program), "--version"]):
        return binaries
    source = binaries.resolve().parent
    changed = (binaries / program).stat().st_mtime_ns
    name = hashlib.sha256(f"{source}\n{changed}".encode()).hexdigest()[:16]
    target = _within_reach(user) / f"{PROGRAMS}{name}"
    if not target.exists():
        partial = Path(tempfile.mkdtemp(prefix=PROGRAMS, dir=target.parent))
        for path in (source, *source.parents[1].glob(f"{source.parent.name}.libs")):
            # A wheel's programs find their libraries beside the wheel's package.
            shutil.copytree(path, partial / path.relative_to(source.parents[1]))
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o755 | (0o555 if path.is_dir() else 0o444))
        try:
            partial.rename(target)
        except OSError:
            # Somebody else was quicker.
            shutil.rmtree(partial, ignore_errors=True)
    status = target.lstat()
    if target.is_symlink() or status.st_uid != 0 or status.st_mode & 0o022:
        raise Unavailable(
            f"{target} is not root's alone: remove it, or make {binaries} readable for all users"
        )
    return target / source.parent.name / source.name / "bin"
