"""`python -m examples.code_census [DIR]`: run the demo; the exit status is 0 only if the totals are right."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from examples.code_census.census import standard_library
from examples.code_census.demo import Options, run_demo
from examples.code_census.report import show
from examples.code_census.workers import WorkerEnded
from flowfabric import FlowFabricError


def read_options(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.code_census", description=__doc__)
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="what to count; default: Python's own standard library",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="count at most N files")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--store", metavar="URL", help="use this store; default: one made for this run")
    where.add_argument(
        "--server", metavar="URL", help="use this server; its token is read from FLOWFABRIC_TOKEN"
    )
    parser.add_argument(
        "--backend",
        choices=["sqlite", "valkey", "postgres"],
        default="sqlite",
        help="of the store made for this run; for valkey and postgres, a server is started for it",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (default 2)")
    parser.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="files at once per worker (default 4)"
    )
    parser.add_argument("--lease-ttl", type=float, default=2.0, metavar="SECONDS", help="default 2")
    parser.add_argument(
        "--kill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="kill one of the demo's own workers half-way",
    )
    given = parser.parse_args(arguments)
    root = (given.root or standard_library()).resolve()
    if not root.is_dir():
        parser.error(f"{root} is not a folder")
    if given.workers < (2 if given.kill else 1):
        parser.error("killing a worker takes at least two: --workers 2, or --no-kill")
    if given.limit is not None and given.limit < 1:
        parser.error("--limit is at least 1")
    return Options(
        root=root,
        limit=given.limit,
        url=given.store or given.server,
        backend=given.backend,
        workers=given.workers,
        concurrency=max(1, given.concurrency),
        lease_ttl_ms=max(100, round(given.lease_ttl * 1_000)),
        kill=given.kill,
    )


def first_cause(error: BaseException) -> str:
    """Tell the first error of a group of groups, and what to do about it if that is known."""
    nested: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if nested:
        return first_cause(nested[0])
    advice = error.details.get("next") if isinstance(error, FlowFabricError) else None
    return f"{error}\n{advice}" if advice else str(error)


def main() -> int:
    """Run the demo and return its exit status."""
    options = read_options()
    try:
        outcome = asyncio.run(run_demo(options))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (FlowFabricError, WorkerEnded, ExceptionGroup) as error:
        print(f"error: {first_cause(error)}", file=sys.stderr)
        return 3
    show(outcome)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
