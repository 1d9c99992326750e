"""Running `flowfabric` in processes of its own, and a `dev` to talk to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfabric.cli.root import run
from flowfabric.provision.postgres import BINARIES
from flowfabric.provision.valkey import BINARY

TIMEOUT_S = 60
APP = """
import asyncio

from flowfabric import App, Context, PermanentError

app = App("testing")


@app.task(retries=2, backoff="10ms")
async def greet(ctx: Context, name: str) -> str:
    await ctx.stream(f"hello {name}")
    await ctx.stream({"to": name})
    return f"greeted {name}"


@app.task
async def refuse(ctx: Context) -> None:
    raise PermanentError("no, thank you")


@app.task
async def sleep(ctx: Context, seconds: float) -> str:
    await ctx.stream("asleep")
    await asyncio.sleep(seconds)
    return "awake"
"""


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment without settings of the machine the tests run on, but for the servers they start."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in (BINARY, BINARIES) or not name.startswith(("FF_", "FLOWFABRIC_", "NO_COLOR"))
    }
    return {**kept, "COLUMNS": "200", **(more or {})}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


STAYING = frozenset({"dev", "serve", "worker"})
"""Commands that change the process they run in, and therefore get one of their own."""


def flowfabric(
    *arguments: str | Path,
    cwd: Path | None = None,
    text: str = "",
    own_process: bool = False,
    variables: dict[str, str] | None = None,
) -> Done:
    """Run one command to its end, in this process unless it needs one of its own."""
    words = [str(argument) for argument in arguments]
    if own_process or (words and words[0] in STAYING):
        done = subprocess.run(
            [sys.executable, "-m", "flowfabric", *words],
            check=False, capture_output=True, text=True, input=text, cwd=cwd, env=environment(variables),
            timeout=TIMEOUT_S,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)
    streams = [
        io.TextIOWrapper(io.BytesIO(text.encode())),
        *(io.TextIOWrapper(io.BytesIO()) for _ in range(2)),
    ]
    status = 0
    before = sys.stdin, sys.stdout, sys.stderr
    with contextlib.chdir(cwd or Path.cwd()), replaced_environment(environment(variables)):
        sys.stdin, sys.stdout, sys.stderr = streams
        try:
            run(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            sys.stdin, sys.stdout, sys.stderr = before
    written: list[str] = []
    for stream in streams[1:]:
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        written.append(stream.buffer.getvalue().decode())
    return Done(status, *written)


@contextmanager
def replaced_environment(variables: dict[str, str]) -> Iterator[None]:
    """Run a block with these variables and no others."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def answer(*arguments: str | Path, cwd: Path | None = None, variables: dict[str, str] | None = None) -> Any:
    """Run one command with --json, expect success, and return the document it wrote."""
    done = flowfabric(*arguments, "--json", cwd=cwd, variables=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class Dev:
    """A running `flowfabric dev`."""

    process: subprocess.Popen[str]
    folder: Path
    url: str

    def stop(self) -> int:
        """Interrupt it and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(TIMEOUT_S)


@contextmanager
def dev(folder: Path, *arguments: str, app: str = APP) -> Iterator[Dev]:
    """Run `flowfabric dev` on a free port in a folder until the block ends."""
    (folder / "app.py").write_text(app, encoding="utf-8")
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "flowfabric", "dev", "app.py", "--listen", "127.0.0.1:0", "--json", *arguments,
            ],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "dev.log").read_text(encoding="utf-8")
            yield Dev(process, folder, json.loads(line)["url"])
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
