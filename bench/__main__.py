"""Run the benchmarks and print them as one table: `python -m bench [--quick] [--json FILE] [--only TEXT]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import machine, medians

Row = tuple[str, str, dict[str, Any], Callable[[dict[str, Any]], str], str]


def _rate(figures: dict[str, Any]) -> str:
    return f"{figures['per_s']:,.0f}/s · {figures['cpu_us']:.0f} us CPU"


def _wake(figures: dict[str, Any]) -> str:
    return f"p50 {figures['p50_ms']:.2f} ms · p99 {figures['p99_ms']:.2f} ms"


def _rows(quick: bool) -> list[Row]:
    tasks = 2_000 if quick else 10_000
    samples = 50 if quick else 300
    many = 20_000 if quick else 1_000_000
    return [
        (
            "claim+complete, 4 KiB, 16 slots",
            "drain",
            {"tasks": tasks, "slots": 16, "size": 4096},
            _rate,
            ">= 4,000/s",
        ),
        (
            "bare sqlite3 loop, same rows, groups of 16",
            "bare",
            {"tasks": tasks, "group": 16, "size": 4096},
            _rate,
            "",
        ),
        ("the same through the worker SDK", "worker", {"tasks": tasks, "slots": 16, "size": 4096}, _rate, ""),
        ("create_many", "create_many", {"tasks": tasks, "size": 4096}, _rate, ">= 15,000/s"),
        (
            "create, 64 callers",
            "create_single",
            {"tasks": tasks, "callers": 64, "size": 4096},
            _rate,
            ">= 6,000/s",
        ),
        (
            "create over HTTP, 64 connections, 4 KiB",
            "http_create",
            {"tasks": tasks // 64 * 64, "connections": 64, "size": 4096},
            _rate,
            ">= 4,000/s",
        ),
        ("idle worker woken, one process", "wake_one_process", {"count": samples}, _wake, "p50 < 5 ms"),
        ("idle worker woken, across processes", "wake_across", {"count": samples}, _wake, "p50 < 8 ms"),
        ("idle worker woken, through HTTP", "wake_http", {"count": samples}, _wake, "p50 < 15 ms"),
        (
            "claim+complete, 1,000 waiting, 64 B",
            "flat",
            {"waiting": 1_000, "claims": 3_200, "slots": 16},
            _rate,
            "",
        ),
        (
            f"claim+complete, {many:,} waiting, 64 B",
            "flat",
            {"waiting": many, "claims": 3_200, "slots": 16},
            _rate,
            "within 1.5x",
        ),
        (
            "idle dev process",
            "idle_dev",
            {"seconds": 5 if quick else 20},
            lambda f: f"{f['core_percent']:.2f} % of a core · {f['resident_mb']:.0f} MB",
            "< 1 %",
        ),
        (
            "serve, 100,000 executions passed",
            "memory",
            {"tasks": 5_000 if quick else 100_000},
            lambda f: f"+{f['grown_mb']:.1f} MB on {f['resident_mb']:.0f} MB · {f['per_s']:,.0f}/s",
            "< 20 MB",
        ),
    ]


def main() -> None:
    """Run every scenario, or those whose title contains `--only`."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small counts, one round: does everything still run?"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="run the scenarios whose title contains this")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    console = Console()
    rounds = 1 if arguments.quick else arguments.rounds
    figures: dict[str, dict[str, Any]] = {}
    table = Table(title="FlowFabric on SQLite, synchronous=FULL (medians)")
    for column in ("scenario", "measured", "target"):
        table.add_column(column)
    with console.status("starting") as status:
        for title, scenario, options, show, target in _rows(arguments.quick):
            if arguments.only not in title:
                continue
            once = scenario in ("memory", "idle_dev") or options.get("waiting", 0) > 100_000
            measured = medians(scenario, options, 1 if once else rounds, status.update)
            figures[title] = measured
            table.add_row(title, show(measured), target)
            if not console.is_terminal:
                console.print(f"{title}: {show(measured)}")
    _ratios(table, figures)
    console.print(table)
    described = machine()
    console.print(", ".join(f"{key} {value}" for key, value in described.items()))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"machine": described, "figures": figures}, indent=2), encoding="utf-8"
        )


def _ratios(table: Table, figures: dict[str, dict[str, Any]]) -> None:
    by_kind = {title: measured["per_s"] for title, measured in figures.items() if "per_s" in measured}
    drain = by_kind.get("claim+complete, 4 KiB, 16 slots")
    bare = by_kind.get("bare sqlite3 loop, same rows, groups of 16")
    if drain and bare:
        table.add_row("claim+complete against the bare loop", f"{drain / bare:.2f}x", ">= 0.5x")
    flat = [rate for title, rate in by_kind.items() if "waiting" in title]
    if len(flat) == 2:
        table.add_row("few waiting against many", f"{flat[0] / flat[1]:.2f}x", "<= 1.5x")


if __name__ == "__main__":
    main()
