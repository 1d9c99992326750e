"""`flowfabric new`: a project of three small files that works at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from flowfabric.cli.command import Session

APP: Final = '''\
"""{name}: counts the words of files, and streams each paragraph's count while it works."""

from pathlib import Path

from flowfabric import App, Context

app = App("{name}")


@app.task(retries=3, timeout="30s")
async def count_words(ctx: Context, path: str) -> int:
    total = 0
    for paragraph in Path(path).read_text(encoding="utf-8").split("\\n\\n"):
        words = len(paragraph.split())
        await ctx.stream({"words": words})
        total += words
    return total
'''

TEST: Final = """\
import asyncio

from app import app, count_words
from flowfabric.testing import embedded
from flowfabric.worker import Worker


def test_words_are_counted() -> None:
    async def scenario() -> int:
        async with embedded() as ff, Worker(ff.backend, app):
            run = await ff.client.submit(count_words, path=__file__)
            return await run.result(timeout=10)

    assert asyncio.run(scenario()) > 10
"""

README: Final = """\
# {name}

    flowfabric dev app.py                                            # everything in one process
    flowfabric submit count_words --input '{"path": "README.md"}' --tail
    pytest
"""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


async def new(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="NAME", help="The folder to make; its name is the app's.")],
) -> None:
    """Make a small project that works at once: an app, a test, a README."""
    from flowfabric.cli import output
    from flowfabric.contract.errors import Misuse

    name = path.resolve().name
    if NAME.fullmatch(name) is None:
        raise Misuse(
            f"{name!r} is not a name for a project", next="use letters, digits, dots, dashes and underscores"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise Misuse(f"{path} exists and is not an empty folder", next="name another folder")
    path.mkdir(parents=True, exist_ok=True)
    files = {"app.py": APP, "test_app.py": TEST, "README.md": README}
    for file_name, text in files.items():
        (path / file_name).write_text(text.replace("{name}", name), encoding="utf-8")
    if session.as_json:
        output.document({"path": str(path), "files": list(files)})
        return
    output.line(f"made {path}: {', '.join(files)}")
    output.note(f"next: cd {path} && flowfabric dev app.py")
