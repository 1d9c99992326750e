"""The tool itself: help, version, completion, the project it makes, and that it starts quickly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.running import answer, environment, flowfabric

COMMANDS = (
    "new", "dev", "serve", "worker", "submit", "tail", "wait", "cancel", "replay", "list", "describe", "lane",
    "workers", "admin", "completion", "version",
)  # fmt: skip


def test_help_names_every_command_and_status() -> None:
    """`--help` lists every command and says what exit statuses mean."""
    shown = flowfabric("--help", own_process=True).stdout
    assert all(f" {command} " in shown for command in COMMANDS)
    assert "4 refused" in shown


def test_help_imports_no_server_and_no_store() -> None:
    """Help and completion do not pay for what only commands need."""
    program = (
        "import sys\n"
        "from flowfabric.cli.root import build\n"
        "build(operations=False)\n"
        "heavy = {'uvicorn', 'aiohttp', 'starlette', 'sqlite3', 'flowfabric.backends', 'flowfabric.client'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    """`--help` answers at once; even on a busy machine the best of a few takes less than a second."""
    took: list[float] = []
    for _ in range(4):
        begun = time.perf_counter()
        flowfabric("--help", own_process=True)
        took.append(time.perf_counter() - begun)
    assert min(took) < 1.0


def test_version_is_one_line_or_json() -> None:
    """`version` names FlowFabric, Python and SQLite."""
    assert flowfabric("version", own_process=True).stdout.startswith("flowfabric 0.")
    assert set(answer("version")) == {"flowfabric", "python", "sqlite"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_command(shell: str) -> None:
    """`completion SHELL` prints a script for that shell."""
    done = flowfabric("completion", shell)
    assert done.returncode == 0
    assert "flowfabric" in done.stdout
    assert "_FLOWFABRIC_COMPLETE" in done.stdout


def test_completion_answers(tmp_path: Path) -> None:
    """The shell's question is answered with commands, also below `admin`."""

    def completed(words: str, index: int) -> list[str]:
        question = {
            "_FLOWFABRIC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index),
        }  # fmt: skip
        return flowfabric(own_process=True, cwd=tmp_path, variables=question).stdout.split()

    assert completed("flowfabric des", 1) == ["describe"]
    assert completed("flowfabric admin lease rele", 3) == ["release"]


def test_new_project_is_small_and_its_test_passes(tmp_path: Path) -> None:
    """`new` makes an app, a test and a README of 40 lines in all, and the test passes as it is."""
    made = answer("new", "census", cwd=tmp_path)
    folder = tmp_path / "census"
    texts = [(folder / name).read_text(encoding="utf-8") for name in made["files"]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        check=False, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert sum(text.count("\n") for text in texts) <= 40
    assert done.returncode == 0, done.stdout
    assert flowfabric("new", "census", cwd=tmp_path).returncode == 2
