"""`python -m tests.architecture.lua`: luacheck over the function library, as a step of `make check`.

A file of the library is the body of a function whose parameters are generated from its header, and it uses what other
files define; by itself it makes no sense. So the library is assembled as the servers get it, and what luacheck says
about it is told by file and line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from flowfabric.backends.valkey.library import assemble, expand
from tests.architecture.house import SRC, relative

LUA: Final = SRC / "backends" / "valkey" / "lua"
WARNING: Final = re.compile(r"^[^:]*:(\d+):(\d+): (.*)$", re.MULTILINE)
TIMEOUT_S: Final = 120
MISSING: Final = """\
luacheck is missing. On Debian and Ubuntu: apt-get install lua-check. On macOS: brew install luacheck.
Elsewhere: luarocks install luacheck.\
"""


def origins(code: str) -> dict[int, tuple[Path, int]]:
    """Map each line of the library that comes from a file to that file and its line there."""
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted(LUA.rglob("*.lua")):
        body = expand(path.read_text(encoding="utf-8").rstrip())
        at = code.find(body)
        if at < 0:
            raise SystemExit(f"{relative(path)} is not in the library")
        first = code.count("\n", 0, at) + 1
        for number in range(body.count("\n") + 1):
            found[first + number] = path, number + 1
    return found


def check(code: str) -> list[str]:
    """Return what luacheck has to say about a library."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        raise SystemExit(MISSING)
    # The first line tells the server the library's name; it is no Lua.
    source = "\n" + code.partition("\n")[2]
    done = subprocess.run(
        [luacheck, "--codes", "--no-color", "--formatter", "plain", "--filename", "library.lua", "-"],
        input=source,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode > 2:
        raise SystemExit(f"luacheck failed: {done.stdout}{done.stderr}")
    places = origins(code)
    said: list[str] = []
    for line, column, text in WARNING.findall(done.stdout):
        place = places.get(int(line))
        if place is not None:
            said.append(f"{relative(place[0])}:{place[1]}:{column}: {text}")
        elif not text.startswith("(W631)"):
            said.append(f"generated code, line {line}: {text}: {source.splitlines()[int(line) - 1].strip()}")
    if done.returncode and not said and "W631" not in done.stdout:
        raise SystemExit(f"luacheck failed: {done.stdout}{done.stderr}")
    return said


def main() -> int:
    """Check the library that production loads and the one tests load."""
    said = sorted({line for manual in (False, True) for line in check(assemble(manual_clock=manual).code)})
    for line in said:
        print(line)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
