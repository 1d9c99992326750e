"""`python -m flowfabric.worker app.py --url URL`: one worker, or several processes of it.

People use `flowfabric worker`; supervised processes are started this way. The token comes by the environment, and so
does a URL that holds a password.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flowfabric.contract import ids
from flowfabric.telemetry import log
from flowfabric.worker.entry import TOKEN_VARIABLE, URL_VARIABLE, WorkerSettings, run_supervised, run_worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run; return the exit code."""
    defaults = WorkerSettings(app="", url="")
    parser = argparse.ArgumentParser(prog="python -m flowfabric.worker", description="Run an app's tasks.")
    parser.add_argument("app", help="module:app, module, app.py or app.py:app")
    parser.add_argument(
        "--url", default=os.environ.get(URL_VARIABLE), help="of a server (http...) or a store (sqlite:///...)"
    )
    parser.add_argument("--namespace", default=ids.DEFAULT_NAMESPACE)
    parser.add_argument("--worker-id")
    parser.add_argument("--lane", action="append", default=[], dest="lanes")
    parser.add_argument("--capability", action="append", default=[], dest="capabilities")
    parser.add_argument("--concurrency", type=int, default=defaults.concurrency)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--lease-ttl", type=float, default=defaults.lease_ttl_s, help="seconds")
    parser.add_argument("--drain-timeout", type=float, default=defaults.drain_timeout_s, help="seconds")
    parser.add_argument("--no-timers", action="store_true", help="do not run the store's timers")
    parser.add_argument("--reload", action="store_true", help="start afresh when a file of the app changes")
    parser.add_argument("--log-level", choices=tuple(log.LEVELS), default=defaults.log_level)
    parser.add_argument("--log-format", choices=("auto", "text", "json"), default=defaults.log_format)
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not given.url:
        parser.error(f"give --url, or set {URL_VARIABLE}")
    settings = WorkerSettings(
        app=given.app,
        url=given.url,
        token=os.environ.get(TOKEN_VARIABLE) or None if given.url.startswith("http") else None,
        worker_id=given.worker_id,
        namespace=given.namespace,
        lanes=tuple(given.lanes),
        capabilities=tuple(given.capabilities),
        concurrency=given.concurrency,
        processes=given.processes,
        lease_ttl_s=given.lease_ttl,
        drain_timeout_s=given.drain_timeout,
        timers=not given.no_timers,
        reload=given.reload,
        log_level=given.log_level,
        log_format=given.log_format,
    )
    return run_supervised(settings) if given.supervised else run_worker(settings)


if __name__ == "__main__":
    sys.exit(main())
