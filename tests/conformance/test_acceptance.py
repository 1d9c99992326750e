"""The list of accepted behaviours is the one in the tests' docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


def test_the_page_is_current() -> None:
    """docs/reference/acceptance.md lists exactly what the tests' docstrings promise."""
    check = subprocess.run(
        [sys.executable, "docs/generate_acceptance.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
