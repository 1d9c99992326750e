"""Finding the app to run: `module:app`, `module`, `app.py` or `app.py:app`, with errors that say what to do.

A file is loaded as a top-level module of its own name, with its folder on the path, as `python app.py` would.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from flowfabric.contract.errors import FlowFabricError, Misuse
from flowfabric.worker.app import App

WATCHED_FILES_MAX: Final = 2_000
_SKIPPED: Final = frozenset(
    {"site-packages", "dist-packages", "node_modules", "__pycache__", "build", "dist"}
)


class AppBroken(Misuse):
    """The app's own code raised an error while it was loaded."""


def load_app(reference: str) -> App:
    """Import the app that a reference names.

    Raises: Misuse when there is none or it has no tasks; AppBroken when its code fails, with the place in it.
    """
    place, name = split_reference(reference)
    found = _choose(reference, _import(reference, place), name)
    if not len(found):
        raise Misuse(f"{reference} has no tasks: decorate a function with @app.task")
    return found


def split_reference(reference: str) -> tuple[str, str]:
    """Return (module or file, name of the app or nothing)."""
    place, colon, name = reference.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        return reference, ""
    return place, name


def is_file(place: str) -> bool:
    """Say whether the first part of a reference names a file rather than a module."""
    return place.endswith(".py") or "/" in place


def watched_files(reference: str) -> list[Path]:
    """List the Python files near an app without importing it: those in its folder and below, at most 2,000."""
    place, _ = split_reference(reference)
    if is_file(place):
        home = Path(place).resolve().parent
    else:
        home = Path.cwd().joinpath(*place.split(".")[:-1])
    found: list[Path] = []
    for path in home.rglob("*.py"):
        inside = path.relative_to(home).parts
        if not _SKIPPED.intersection(inside) and not any(part.startswith(".") for part in inside):
            found.append(path)
            if len(found) >= WATCHED_FILES_MAX:
                break
    return sorted(found)


def _import(reference: str, place: str) -> ModuleType:
    if is_file(place):
        path = Path(place).resolve()
        if not path.is_file():
            raise Misuse(
                f"there is no file {place}: give an existing one, or a module such as package.module:app"
            )
        folder, name = str(path.parent), path.stem
    else:
        folder, name = str(Path.cwd()), place
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Misuse(
                f"there is no module {name}: run this where the module is, or give a file such as app.py"
            ) from error
        raise _broken(reference, error) from error
    except FlowFabricError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(reference, error) from error


def _broken(reference: str, error: BaseException) -> AppBroken:
    if isinstance(error, SyntaxError) and error.filename:
        return AppBroken(
            f"{reference} cannot be loaded: {error.msg} ({error.filename}:{error.lineno}): repair it and try again"
        )
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return AppBroken(
        f"{reference} cannot be loaded: {type(error).__name__}: {error}{where}: repair it and try again"
    )


def _choose(reference: str, module: ModuleType, name: str) -> App:
    if name:
        named: Any = getattr(module, name, None)
        if isinstance(named, App):
            return named
        raise Misuse(f"{module.__name__} has no app named {name}: define it with {name} = App({name!r})")
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if "app" in apps:
        return apps["app"]
    distinct = list({id(value): value for value in apps.values()}.values())
    if len(distinct) == 1:
        return distinct[0]
    if not distinct:
        raise Misuse(f'{reference} defines no app: add `from flowfabric import App` and `app = App("name")`')
    names = sorted(apps)
    raise Misuse(
        f"{reference} defines several apps ({', '.join(names)}): name one, as in {reference}:{names[0]}"
    )
