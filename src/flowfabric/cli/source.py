"""The app that `dev` runs: loading it, which files it is made of, and loading it again after one of them changed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flowfabric.worker import App

FOREIGN: Final = frozenset({"site-packages", "dist-packages", ".venv"})


class AppSource:
    """An app by reference. Its files are those of the modules that were imported from the app's own folder."""

    def __init__(self, reference: str) -> None:
        from flowfabric.worker.loading import is_file, split_reference

        self.reference: str = reference
        place, _ = split_reference(reference)
        self._file: Path | None = Path(place).resolve() if is_file(place) else None
        self._module: str = self._file.stem if self._file is not None else place
        self._files: set[Path] = {self._file} if self._file is not None else set()

    @property
    def files(self) -> list[Path]:
        """The files that make up the app, also those of a version that does not load."""
        return sorted(self._files)

    def load(self) -> App:
        """Import the app; modules of its own that were imported before are read again.

        Raises: `Misuse` when there is none, or its code fails, with the place in it.
        """
        from flowfabric.worker.loading import load_app

        for name, module in list(sys.modules.items()):
            if _file_of(module) in self._files:
                del sys.modules[name]
        importlib.invalidate_caches()
        try:
            return load_app(self.reference)
        finally:
            self._note()

    def _note(self) -> None:
        file = self._file
        if file is None:
            module = sys.modules.get(self._module)
            file = _file_of(module) if module is not None else None
        if file is None:
            return
        home = file.parent
        found = {_file_of(module) for module in list(sys.modules.values())}
        self._files |= {path for path in found if path is not None and _belongs(path, home)}
        self._files.add(file)


def _file_of(module: ModuleType) -> Path | None:
    file: Any = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _belongs(path: Path, home: Path) -> bool:
    return (
        path.suffix == ".py"
        and path.is_relative_to(home)
        and not FOREIGN.intersection(path.relative_to(home).parts)
    )
