"""Running a module of another version of FlowFabric: `python -m tests.faults.valkey.other_version SOURCE MODULE ...`.

`SOURCE` is a folder that holds a package `flowfabric`; `copy_with_another_library` makes one. Nothing of FlowFabric may
be imported before the folder is in its place, so this module imports nothing of it.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def copy_with_another_library(package: Path, source: Path) -> None:
    """Copy the package; a comment in one of its functions is another, so that its library has another name."""
    copied = source / "flowfabric"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copied / "backends" / "valkey" / "lua" / "lease" / "renew.lua"
    changed.write_text(f"{changed.read_text()}-- Another version.\n")
