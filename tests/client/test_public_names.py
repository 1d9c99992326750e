"""What `import flowfabric` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flowfabric
from flowfabric.contract.errors import BY_CODE


def test_importing_the_package_imports_nothing_else() -> None:
    """Names are imported when used: the bare import loads neither the contract nor an HTTP library."""
    script = (
        "import sys, flowfabric\n"
        "heavy = ('flowfabric.', 'aiohttp', 'msgspec', 'asyncio')\n"
        "loaded = [m for m in sys.modules if m.startswith(heavy) and m != 'flowfabric.version']\n"
        "assert not loaded, loaded\n"
        "flowfabric.connect\n"
        "assert 'aiohttp' not in sys.modules and 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


@pytest.mark.parametrize("name", flowfabric.__all__)
def test_every_public_name_exists(name: str) -> None:
    """Each name in `__all__` can be imported and is listed by dir()."""
    assert getattr(flowfabric, name) is not None
    assert name in dir(flowfabric)


def test_unknown_names_are_attribute_errors() -> None:
    """A name that does not exist is an AttributeError as for any module."""
    with pytest.raises(AttributeError, match="nonsense"):
        _ = flowfabric.nonsense


def test_the_version_is_the_projects() -> None:
    """The version that programs see is that of the installed project."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert flowfabric.__version__ == project["version"]


@pytest.mark.parametrize(
    "name", ["TaskFailed", "TaskCancelled", "TaskExpired", "TaskSkipped", "ResultTimeout"]
)
def test_how_runs_end_has_codes_of_its_own(name: str) -> None:
    """The client's errors are FlowFabric errors whose codes no operation refuses with, and they survive pickling."""
    import pickle

    kind = getattr(flowfabric, name)
    assert issubclass(kind, flowfabric.FlowFabricError)
    assert BY_CODE.get(kind.code) in (None, kind)
    error = pickle.loads(pickle.dumps(kind("why", execution_id="x")))
    assert (type(error), error.message, error.details["execution_id"]) == (kind, "why", "x")
