"""The examples in the documentation run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Dev, dev, environment, flowfabric
from tests.docs.pages import ROOT, Block, blocks

HELLO = (ROOT / "examples" / "hello" / "worker.py").read_text(encoding="utf-8")
STAYING = ("flowfabric serve ", "flowfabric worker ")
LOCAL = "http://127.0.0.1:9090"


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A `dev` that runs the example worker."""
    with dev(tmp_path_factory.mktemp("hello"), app=HELLO) as found:
        yield found


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_runs(block: Block, hello: Dev, tmp_path: Path) -> None:
    """A Python block runs to its end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        check=False, cwd=tmp_path, env=environment({"FLOWFABRIC_URL": hello.url}), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_worker_in_the_readme_is_the_example() -> None:
    """The worker shown in the README is examples/hello/worker.py, and has about twenty lines."""
    shown = next(block.text for block in blocks("python") if block.page.name == "README.md")
    without_header = re.sub(r'\A"""[^"]*"""\n\nfrom __future__ import annotations\n\n', "", HELLO)
    assert without_header == shown
    assert shown.count("\n") <= 20


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_json_is_json(block: Block) -> None:
    """A JSON block is well-formed."""
    import json

    json.loads(block.text)


def commands(block: Block) -> list[str]:
    """Return the commands of a console block."""
    return [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]


def outside_readme() -> list[Block]:
    """Return the console blocks that are checked, not run."""
    return [block for block in blocks("console") if block.page.name != "README.md"]


@pytest.mark.parametrize("block", outside_readme(), ids=lambda block: block.place)
def test_commands_exist(block: Block) -> None:
    """Each command and option in a console block exists."""
    for command in commands(block):
        words = shlex.split(command)
        assert words[0] == "flowfabric", command
        names = [word for word in words[1:3] if word.isalpha() and word.islower()]
        while names and flowfabric(*names, "--help").returncode != 0:
            names.pop()
        shown = flowfabric(*names, "--help").stdout
        assert names, command
        assert all(word in shown for word in words if word.startswith("--")), command


def test_make_targets_exist() -> None:
    """Each `make` command in the documentation has its target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    used = {
        match[1]
        for block in [*blocks("console"), *blocks("")]
        for match in re.finditer(r"\bmake ([a-z]+)", block.text)
    }
    assert {"demo", "test"} <= used
    assert used <= targets


def test_five_minutes_go_as_the_readme_says(tmp_path: Path) -> None:
    """The commands of the README's first five minutes, and of its REST section, work one after the other."""
    readme = [block for block in blocks("console") if block.page.name == "README.md"]
    first, second = (block for block in readme if "count_words" in block.text)
    new = commands(first)[0].partition(" && ")[0]
    assert flowfabric(*shlex.split(new)[1:], cwd=tmp_path).returncode == 0
    project = tmp_path / "census"
    app = (project / "app.py").read_text(encoding="utf-8")
    with dev(project, app=app) as running:
        for command in commands(second):
            done = flowfabric(*shlex.split(command)[1:], cwd=project)
            assert done.returncode == 0, done.stderr
            if "--tail" in command:
                assert done.stdout.count("\n") == 3
        banner = next(line for line in first.text.splitlines() if line.startswith("  try"))
        tried = flowfabric(*shlex.split(banner.split("try")[1])[1:], cwd=project)
        assert tried.returncode == 0, tried.stderr
        curl = [command for block in readme for command in commands(block) if command.startswith("curl")]
        assert curl
        if shutil.which("curl") is not None:
            for command in curl:
                done = subprocess.run(
                    shlex.split(command.replace(LOCAL, running.url)),
                    check=False, capture_output=True, text=True, env=dict(os.environ, no_proxy="*"), timeout=30,
                )  # fmt: skip
                assert done.stdout.startswith("{"), done.stderr
                assert '"error"' not in done.stdout


def test_commands_of_a_deployment_start(tmp_path: Path) -> None:
    """The README's `serve` and `worker` commands name options that exist."""
    readme = [block for block in blocks("console") if block.page.name == "README.md"]
    staying = [command for block in readme for command in commands(block) if command.startswith(STAYING)]
    assert len(staying) == 2
    for command in staying:
        words = shlex.split(command)
        shown = flowfabric(words[1], "--help").stdout
        assert all(word in shown for word in words if word.startswith("--"))
