"""One round of one scenario in this process: `python -m bench.child NAME '{"option": value}'`; prints JSON."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
from typing import Any, Final

SCENARIOS: Final = {
    "drain": "bench.drain:drain",
    "bare_sqlite": "bench.bare_sqlite:bare",
    "bare_valkey": "bench.bare_valkey:bare",
    "bare_postgres": "bench.bare_postgres:bare",
    "order": "bench.order:order",
    "create_many": "bench.drain:create_many",
    "create_single": "bench.drain:create_single",
    "flat": "bench.drain:flat",
    "kept": "bench.history:kept",
    "retention": "bench.history:retention",
    "worker": "bench.sdk:worker_drain",
    "http_workers": "bench.sdk:http_worker_drain",
    "http_worker": "bench.sdk:http_worker",
    "http_create": "bench.load:http_create",
    "memory": "bench.load:memory",
    "wake_one_process": "bench.wake:one_process",
    "wake_across": "bench.wake:across_processes",
    "wake_http": "bench.wake:over_http",
    "submitter": "bench.wake:submitter",
    "bursts": "bench.crowd:bursts",
    "routing": "bench.crowd:routing",
    "idle_dev": "bench.idle:idle_dev",
    "idle_system": "bench.idle:idle_system",
}


async def _with_loop(function: Any, options: dict[str, Any]) -> Any:
    return await function(**options)


def main() -> None:
    """Run the scenario named on the command line."""
    module, _, name = SCENARIOS[sys.argv[1]].partition(":")
    function = getattr(importlib.import_module(module), name)
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    if not inspect.iscoroutinefunction(function):
        figures = function(**options)
    else:
        try:
            from uvloop import run
        except ImportError:
            run = asyncio.run
        figures = run(_with_loop(function, options))
    if figures is not None:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
