"""Run the benchmarks and print them as one table: `python -m bench [--quick] [--store NAME] [--only TEXT]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import postgres
from bench.measure import machine, medians, run_child
from bench.rows import RATIOS, Figures, Row, rows
from bench.servers import best_build
from bench.stores import STORES, VALKEYS, startable
from flowfabric.provision.postgres import BINARIES
from flowfabric.provision.valkey import BINARY


def main() -> int:
    """Run every scenario on every store, or those that were chosen; 1 when one could not be run."""
    arguments = _arguments()
    if arguments.valkey_server:
        os.environ[BINARY] = arguments.valkey_server
    console = Console()
    stores = arguments.store or startable()
    if missing := [store for store in stores if store not in startable()]:
        console.print(
            f"no server for {', '.join(missing)}: name a valkey-server by --valkey-server or {BINARY}, the folder of "
            f"Postgres's programs by {BINARIES}"
        )
        return 2
    chosen = [row for row in rows(quick=arguments.quick) if arguments.only in f"{row.name} {row.title}"]
    table = Table(title="FlowFabric (medians)")
    for column in ("scenario", "store", "measured", "target"):
        table.add_column(column, overflow="fold")
    figures: dict[tuple[str, str], Figures] = {}
    failures: list[str] = []
    rounds = 1 if arguments.quick else arguments.rounds
    with console.status("starting") as status:
        for _, group in groupby(chosen, key=lambda row: row.group or row.name):
            cells = [(row, store) for row in group for store in row.targets if store in stores]
            results: dict[tuple[str, str], list[Figures]] = {}
            for number in range(rounds):
                for row, store in cells:
                    if number and row.once:
                        continue
                    status.update(f"{row.title}, {store}, round {number + 1}")
                    try:
                        found = run_child(row.scenario, {"store": store, **row.options}, limit_s=row.limit_s)
                    except RuntimeError as error:
                        failures.append(f"{row.title}, {store}: {error}")
                        continue
                    results.setdefault((row.name, store), []).append(found)
            for row, store in cells:
                measured = medians(results[row.name, store]) if (row.name, store) in results else None
                _add(console, table, row, store, measured)
                if measured is not None:
                    figures[row.name, store] = measured
    _add_ratios(table, figures)
    console.print(table)
    described = machine(best_build() if VALKEYS.intersection(stores) else None) | postgres.described()
    console.print(", ".join(f"{key} {value}" for key, value in described.items()))
    console.print("sqlite: synchronous=FULL; valkey: append-only file, flushed every second")
    console.print(postgres.SETTINGS)
    if arguments.json is not None:
        _write(arguments.json, described, figures)
    for failure in failures:
        console.print(failure, style="red", markup=False)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small counts, one round: does everything still run?"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--store", action="append", choices=STORES, help="may be repeated; default: all that can be started"
    )
    parser.add_argument("--only", default="", help="run the scenarios whose name or title contains this")
    parser.add_argument("--valkey-server", help="the binary to measure; default: one with jemalloc, else any")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def _add(console: Console, table: Table, row: Row, store: str, measured: Figures | None) -> None:
    shown = row.show(measured) if measured is not None else "failed"
    table.add_row(row.title, store, shown, row.targets[store])
    if not console.is_terminal:
        console.print(f"{row.title} | {store} | {shown} | {row.targets[store]}", soft_wrap=True)


def _add_ratios(table: Table, figures: dict[tuple[str, str], Figures]) -> None:
    table.add_section()
    for ratio in RATIOS:
        one, other = figures.get(ratio.one), figures.get(ratio.other)
        if one is not None and other is not None:
            table.add_row(ratio.title, "", f"{ratio.value(one, other):.2f}x", ratio.target)


def _write(path: Path, described: dict[str, Any], figures: dict[tuple[str, str], Figures]) -> None:
    named = {f"{name} {store}": measured for (name, store), measured in figures.items()}
    path.write_text(json.dumps({"machine": described, "figures": named}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
