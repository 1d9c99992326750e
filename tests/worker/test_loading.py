"""Apps are found by module or file, and errors say what to do."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from flowfabric.contract.errors import Misuse
from flowfabric.worker.loading import AppBroken, load_app, watched_files

ONE = """
from flowfabric.worker import App
app = App("one")
@app.task
def work() -> None: ...
"""
TWO = ONE.replace("app", "first") + ONE.replace("app", "second").replace(
    "from flowfabric.worker import App", ""
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[None]:
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def test_a_file_or_module_names_its_app(tmp_path: Path) -> None:
    """A file, a file with a name, a module and a module with a name all load the same app."""
    (tmp_path / "loading_one.py").write_text(ONE)
    for reference in (
        "loading_one.py",
        "./loading_one.py:app",
        "loading_one",
        "loading_one:app",
        str(tmp_path / "loading_one.py"),
    ):
        assert load_app(reference).name == "one"


def test_a_module_inside_a_package(tmp_path: Path) -> None:
    """A dotted module is found from the working folder."""
    (tmp_path / "loading_package").mkdir()
    (tmp_path / "loading_package" / "__init__.py").write_text("")
    (tmp_path / "loading_package" / "tasks.py").write_text(ONE)
    assert load_app("loading_package.tasks:app").name == "one"


@pytest.mark.parametrize(
    ("text", "reference", "error", "part"),
    [
        (ONE, "missing.py", Misuse, "no file missing.py"),
        (ONE, "missing_module", Misuse, "no module missing_module"),
        (ONE, "loading_it.py:nope", Misuse, "no app named nope"),
        ("x = 1", "loading_it.py", Misuse, "defines no app"),
        ("from flowfabric.worker import App\napp = App('e')", "loading_it.py", Misuse, "has no tasks"),
        (TWO.replace("app", "a"), "loading_it.py", Misuse, "several apps"),
        ("1 / 0", "loading_it.py", AppBroken, r"ZeroDivisionError.*loading_it.py:1"),
        ("def f(:", "loading_it.py", AppBroken, r"loading_it.py:1"),
        ("import nothing_like_this", "loading_it.py", AppBroken, "nothing_like_this"),
        ("raise SystemExit(3)", "loading_it.py", AppBroken, "SystemExit"),
    ],
)
def test_what_cannot_be_loaded_is_explained(
    tmp_path: Path, text: str, reference: str, error: type[Misuse], part: str
) -> None:
    """A missing or broken app is an error that names the place and the next step."""
    (tmp_path / "loading_it.py").write_text(text)
    with pytest.raises(error, match=part):
        load_app(reference)


def test_files_near_the_app_are_watched(tmp_path: Path) -> None:
    """Python files in the app's folder count, environments and caches do not."""
    for name in ("app.py", "part/more.py", ".venv/x.py", "part/__pycache__/y.py", "node_modules/z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.name for path in watched_files("app.py")] == ["app.py", "more.py"]
    assert [path.name for path in watched_files("part.more:app")] == ["more.py"]
