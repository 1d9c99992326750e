"""The repository names no machine it was written on and no address its packages came from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.architecture.house import ROOT, relative, repository_files

# Assembled from pieces, so that this file does not contain what it looks for.
MACHINE_PATHS: Final = [rf"(?<![\w.])/{top}/" for top in ("work", "root", "Users", "home")]
HOSTS: Final = [
    rf"{name}\.{domain}"
    for name, domain in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("yarnpkg", "com"), ("proxy\\.golang", "org"),
        ("crates", "io"), ("docker", "io"), ("ghcr", "io"), ("anaconda", "org"), ("deb\\.debian", "org"),
        ("archive\\.ubuntu", "com"),
    )
]  # fmt: skip
INDEX_OPTIONS: Final = [
    rf"--{option}\b" for option in ("index-url", "extra-index-url", "find-links", "trusted-host")
]
OUTSIDE: Final = re.compile("|".join((*MACHINE_PATHS, *HOSTS, *INDEX_OPTIONS)))

LOCKS: Final = sorted((ROOT / "requirements").glob("*.txt"))
REQUIREMENT: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(?:\[[a-z0-9,_-]+\])?==\S+(?: ; .+)? \\")
HASH: Final = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


def test_nothing_points_outside_the_repository() -> None:
    """No file names a path of some machine, a package host or an index option."""
    found: list[str] = []
    for path in repository_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [
            f"{relative(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
            for match in OUTSIDE.finditer(text)
        ]
    assert not found, "\n".join(found)


def test_the_check_sees_what_points_outside() -> None:
    """The patterns match what they are for and leave ordinary prose alone."""
    outside = (
        "/".join(("", "work", "x")),
        ".".join(("pypi", "org")),
        "--" + "index-url x",
        "-" + "-find-links x",
    )
    assert all(OUTSIDE.search(text) for text in outside)
    inside = (
        "--no-emit-index-url",
        "--no-emit-find-links",
        "src/worker/app.py",
        "homework/root.py",
        "http://localhost/",
    )
    assert not any(OUTSIDE.search(text) for text in inside)


@pytest.mark.parametrize("path", LOCKS, ids=relative)
def test_lock_holds_only_hashed_pins(path: Path) -> None:
    """A lock is pinned requirements and their hashes, line by line, and nothing else."""
    lines = path.read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if line and not REQUIREMENT.fullmatch(line) and not HASH.fullmatch(line)]
    assert lines
    assert not odd, odd


def test_runtime_lock_holds_every_dependency() -> None:
    """Each dependency of the package is pinned in the runtime lock, and every lock agrees on the versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in project["dependencies"]}
    pinned = {path.stem: _pins(path.read_text(encoding="utf-8")) for path in LOCKS}
    assert declared <= pinned["runtime"].keys(), "make lock"
    assert (pinned["runtime"] | pinned["backend"]).items() <= pinned["dev"].items(), "make lock"


def _pins(lock: str) -> dict[str, str]:
    return {
        match["name"]: match["version"]
        for match in re.finditer(
            r"^(?P<name>[a-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>\S+)", lock, re.MULTILINE
        )
    }
