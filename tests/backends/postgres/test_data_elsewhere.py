"""Data of root's servers that is kept elsewhere: what is in use stays, however the way there is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric.provision import unprivileged
from flowfabric.provision.unprivileged import place_for, server_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass through."""
    made = Path(tempfile.mkdtemp(dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_a_shared_folder_that_is_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shared folder is a link, as on macOS, the data of a running server is not taken for left over."""
    (folder / "real").mkdir(mode=0o755)
    (folder / "link").symlink_to(folder / "real")
    (folder / "private").mkdir(mode=0o700)
    monkeypatch.setattr(unprivileged, "SHARED", (str(folder / "link"), str(folder)))
    made = [place_for(folder / "private" / name, server_user()) for name in ("one", "two")]
    assert all(place.exists() for place in made)
    (folder / "private" / "one").unlink()
    place_for(folder / "private" / "three", server_user())
    assert [place.exists() for place in made] == [False, True]
