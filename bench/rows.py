"""What is measured: one row per scenario and store, with what it should come to.

Targets are stated next to the figures and decide nothing: a benchmark fails only when a scenario cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.measure import ROUND_S
from bench.stores import CLUSTER, POSTGRES, SQLITE, VALKEY

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One scenario on some stores. Rows of one group are measured in turn, round by round."""

    name: str
    title: str
    scenario: str
    options: Mapping[str, Any]
    show: Callable[[Figures], str]
    targets: Mapping[str, str]
    """The stores it is measured on, and for each what it should come to."""
    group: str = ""
    once: bool = False
    """Long: one round is enough."""
    limit_s: float = ROUND_S


@dataclass(frozen=True)
class Ratio:
    """Two rows set against each other."""

    title: str
    one: tuple[str, str]
    """Name of a row, and a store."""
    other: tuple[str, str]
    value: Callable[[Figures, Figures], float]
    target: str


# How figures are shown --------------------------------------------------------------------------------------------


def rate(figures: Figures) -> str:
    """Show a rate and CPU."""
    text = f"{figures['per_s']:,.0f}/s · {figures['cpu_us']:.0f} us CPU"
    if "http_us" in figures:
        text += f" · server {figures['http_us']:.0f} us"
    if "server_us" in figures:
        text += f" · store {figures['server_us']:.0f} us"
    if "share_least" in figures:
        text += f" · shares {figures['share_least']:.0f} to {figures['share_most']:.0f} %"
    if figures.get("empty_claims"):
        text += f" · {figures['empty_claims']:.0f} empty claims"
    if "commands_per_task" in figures:
        text += f" · {figures['commands_per_task']:.1f} commands a task"
    if "fsck_s" in figures:
        text += f" · fsck {figures['fsck_s']:.0f} s, nothing found"
    return text


def _retention(figures: Figures) -> str:
    return (
        f"claim p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, most {figures['longest_ms']:.0f} ms · "
        f"before p50 {figures['before_p50_ms']:.1f} ms, p99 {figures['before_p99_ms']:.1f} ms · "
        f"{figures['deleted_per_s']:,.0f} deleted/s"
    )


def _order(figures: Figures) -> str:
    errors = f"{figures['overtakes']:.0f} overtaken by priority, {figures['age_error_ms']:.0f} ms by age"
    return f"{rate(figures)} · {errors}"


def _wake(figures: Figures) -> str:
    return f"p50 {figures['p50_ms']:.2f} ms · p99 {figures['p99_ms']:.2f} ms"


def _burst(figures: Figures) -> str:
    return f"{_wake(figures)} · {figures['stranded']:.0f} stranded · {figures['commands_per_task']:.1f} commands a task"


def _routing(figures: Figures) -> str:
    return (
        f"{figures['matched']:.0f} of {figures['of']:.0f} matched, {figures['wrong']:.0f} wrong · p99 "
        f"{figures['p99_ms']:.0f} ms · {figures['unmatched']:.0f} waiting cost "
        f"{figures['waiting_commands_per_s']:.0f} commands/s, {figures['waiting_core_percent']:.2f} % of a core"
    )


def _idle(figures: Figures) -> str:
    return f"{figures['core_percent']:.2f} % of a core · {figures['resident_mb']:.0f} MB"


def _idle_system(figures: Figures) -> str:
    inside = (
        f" ({figures['commands_per_s']:.0f} with those in functions)" if "commands_per_s" in figures else ""
    )
    return (
        f"{figures['calls_per_s']:.0f} commands/s{inside} · store "
        f"{figures['store_core_percent']:.2f} %, processes {figures['processes_core_percent']:.1f} % of a core"
    )


def _memory(figures: Figures) -> str:
    return f"+{figures['grown_mb']:.1f} MB on {figures['resident_mb']:.0f} MB · {figures['per_s']:,.0f}/s"


# The rows ---------------------------------------------------------------------------------------------------------

BOTH_VALKEY: Final = {VALKEY: "", CLUSTER: ""}
ALL: Final = {SQLITE: "", **BOTH_VALKEY, POSTGRES: ""}


def rows(*, quick: bool) -> list[Row]:
    """Return every row; `quick` ones have small counts and only show that everything runs."""
    return [*_throughput(quick=quick), *_latency(quick=quick), *_depth(quick=quick), *_rest(quick=quick)]


def _throughput(*, quick: bool) -> list[Row]:
    tasks = 1_000 if quick else 10_000
    drain = {"tasks": tasks, "slots": 16, "size": 4096}
    return [
        Row("drain_1", "claim+complete, 4 KiB, 16 slots, 1 a claim", "drain", {**drain, "most": 1}, rate,
            {SQLITE: ">= 4,000/s", **BOTH_VALKEY, POSTGRES: ">= 4,000/s"}, group="drain"),
        Row("drain_8", "claim+complete, 4 KiB, 16 slots, 8 a claim", "drain", {**drain, "most": 8}, rate,
            {VALKEY: ">= 10,000/s · <= 90 us CPU · store <= 70 us", CLUSTER: "", POSTGRES: ""},
            group="drain"),
        Row("bare_sqlite", "bare sqlite3 loop, same rows, groups of 16", "bare_sqlite",
            {"tasks": tasks, "group": 16, "size": 4096}, rate, {SQLITE: ""}, group="drain"),
        Row("bare_1", "bare pipeline of the same writes, 1 a claim", "bare_valkey", {**drain, "most": 1}, rate,
            {VALKEY: ""}, group="drain"),
        Row("bare_8", "bare pipeline of the same writes, 8 a claim", "bare_valkey", {**drain, "most": 8}, rate,
            {VALKEY: ""}, group="drain"),
        Row("bare_postgres", "bare asyncpg loop, same rows, groups of 16", "bare_postgres",
            {"tasks": tasks, "group": 16, "size": 4096}, rate, {POSTGRES: ""}, group="drain"),
        Row("order_1", "the same, random priorities, 1 a claim", "order", {**drain, "most": 1, "priorities": 10},
            _order, {VALKEY: "0 · age <= 250 ms · no empty claims", CLUSTER: ""}),
        Row("order_8", "the same, random priorities, 8 a claim", "order", {**drain, "most": 8, "priorities": 10},
            _order, {VALKEY: "0 · age <= 250 ms · no empty claims", CLUSTER: ""}),
        Row("worker", "the same through the worker SDK", "worker", drain, rate, ALL),
        Row("http_workers", "the same through a server and HTTP workers", "http_workers", {**drain, "workers": 2},
            rate, {VALKEY: ">= 3,000/s"}),
        Row("create_many", "create_many", "create_many", {"tasks": tasks, "size": 4096}, rate,
            {SQLITE: ">= 15,000/s", VALKEY: ">= 30,000/s", CLUSTER: "", POSTGRES: ">= 15,000/s"}),
        Row("create", "create, 64 callers", "create_single", {"tasks": tasks, "callers": 64, "size": 4096}, rate,
            {SQLITE: ">= 6,000/s", VALKEY: ">= 15,000/s", CLUSTER: "", POSTGRES: ">= 5,000/s"}),
        Row("http_create", "create over HTTP, 64 connections, 4 KiB", "http_create",
            {"tasks": tasks // 64 * 64, "connections": 64, "size": 4096}, rate,
            {SQLITE: ">= 4,000/s", VALKEY: ">= 8,000/s", CLUSTER: "", POSTGRES: ""}),
    ]  # fmt: skip


def _latency(*, quick: bool) -> list[Row]:
    samples = 30 if quick else 300
    crowd = {"workers": 20, "count": 3} if quick else {"workers": 100, "count": 20}
    full = 100 if not quick else 20
    routed = {"workers": full, "connections": 10, "tasks": 10 * full, "capabilities": 10}
    return [
        Row("wake_one", "idle worker woken, one process", "wake_one_process", {"count": samples}, _wake,
            {SQLITE: "p50 < 5 ms", VALKEY: "p50 < 3 ms, p99 < 10 ms", CLUSTER: "", POSTGRES: "p50 < 5 ms"}),
        Row("wake_across", "idle worker woken, across processes", "wake_across", {"count": samples}, _wake,
            {SQLITE: "p50 < 8 ms", VALKEY: "p50 < 3 ms, p99 < 10 ms", CLUSTER: "", POSTGRES: "p50 < 5 ms"}),
        Row("wake_http", "idle worker woken, through HTTP", "wake_http", {"count": samples}, _wake,
            {SQLITE: "p50 < 15 ms", VALKEY: "p50 < 8 ms", CLUSTER: "", POSTGRES: ""}),
        Row("burst_50", "bursts of 50, 100 idle workers, 100 connections", "bursts", {**crowd, "size": full // 2},
            _burst, {VALKEY: "0 stranded · p99 < 15 ms · < 10", CLUSTER: ""}),
        Row("burst_100", "bursts of 100, 100 idle workers, 100 connections", "bursts", {**crowd, "size": full},
            _burst, {VALKEY: "0 stranded · p99 < 15 ms · < 10", CLUSTER: ""}),
        Row("routing", "routing: 100 workers, 1,000 tasks, 10 capabilities", "routing", {**routed, "present": 10},
            _routing, {VALKEY: "0 wrong · p99 < 1 s", CLUSTER: ""}, once=True),
        Row("routing_5", "the same, 5 of the capabilities present", "routing", {**routed, "present": 5}, _routing,
            {VALKEY: "0 wrong · p99 < 1 s", CLUSTER: ""}, once=True),
    ]  # fmt: skip


def _depth(*, quick: bool) -> list[Row]:
    few, many, lanes = (1_000, 5_000, 50) if quick else (1_000, 1_000_000, 1_000)
    claims = {"claims": 800 if quick else 3_200, "slots": 16}
    alone = {SQLITE: "", VALKEY: "", POSTGRES: ""}
    finished, old = (100_000, 20_000) if quick else (10_000_000, 1_000_000)
    return [
        Row("few", f"claim+complete, {few:,} waiting, 64 B", "flat", {**claims, "waiting": few}, rate, alone,
            group="depth"),
        Row("lanes", f"the same, {lanes:,} lanes in the store", "flat", {**claims, "waiting": few, "lanes": lanes},
            rate, alone, group="depth"),
        Row("many", f"claim+complete, {many:,} waiting, 64 B", "flat", {**claims, "waiting": many}, rate, alone,
            once=True),
        Row("kept", f"claim+complete, {few:,} waiting, {finished:,} finished kept", "kept",
            {**claims, "waiting": few, "finished": finished, "checked": True}, rate, {POSTGRES: ""}, once=True,
            limit_s=4 * ROUND_S),
        Row("retention", f"claims while {old:,} old executions are deleted", "retention", {"old": old}, _retention,
            {POSTGRES: "no stall"}, once=True),
    ]  # fmt: skip


def _rest(*, quick: bool) -> list[Row]:
    seconds = 5 if quick else 20
    # Two sweeps fall into a minute.
    system = {"seconds": 5 if quick else 60, "workers": 3 if quick else 10}
    return [
        Row("idle_dev", "idle dev process", "idle_dev", {"seconds": seconds}, _idle, {SQLITE: "< 1 %"}, once=True),
        Row("idle_http", "idle system: server, 10 workers of the server", "idle_system",
            {**system, "through_server": True}, _idle_system,
            {VALKEY: "< 300/s · < 2 %", CLUSTER: "", POSTGRES: "< 20/s"}, once=True),
        Row("idle_direct", "idle system: server, 10 workers of the store", "idle_system",
            {**system, "through_server": False}, _idle_system,
            {VALKEY: "< 300/s · < 2 %", CLUSTER: "", POSTGRES: "< 20/s"}, once=True),
        Row("memory", "serve, 100,000 executions passed", "memory", {"tasks": 5_000 if quick else 100_000}, _memory,
            {SQLITE: "< 20 MB", VALKEY: "< 20 MB"}, once=True),
    ]  # fmt: skip


def _rate_ratio(one: Figures, other: Figures) -> float:
    return one["per_s"] / other["per_s"]


def _cpu_ratio(one: Figures, other: Figures) -> float:
    return (other["cpu_us"] + other["server_us"]) / (one["cpu_us"] + one["server_us"])


RATIOS: Final = (
    Ratio("drain / bare loop, sqlite", ("drain_1", SQLITE), ("bare_sqlite", SQLITE), _rate_ratio, ">= 0.5x"),
    Ratio("drain / bare loop, postgres", ("drain_1", POSTGRES), ("bare_postgres", POSTGRES), _rate_ratio, ">= 0.5x"),
    Ratio("drain / bare pipeline, valkey, 1 a claim", ("drain_1", VALKEY), ("bare_1", VALKEY), _rate_ratio, ""),
    Ratio("drain / bare pipeline, valkey, 8 a claim", ("drain_8", VALKEY), ("bare_8", VALKEY), _rate_ratio, ">= 0.6x"),
    Ratio("cluster / single: tasks per CPU-second of all, 8 a claim", ("drain_8", CLUSTER), ("drain_8", VALKEY),
          _cpu_ratio, ">= 0.7x"),
    Ratio("cluster / single: the same, 1 a claim", ("drain_1", CLUSTER), ("drain_1", VALKEY), _cpu_ratio, ">= 0.7x"),
    Ratio("few waiting / many, sqlite", ("few", SQLITE), ("many", SQLITE), _rate_ratio, "<= 1.5x"),
    Ratio("few waiting / many, valkey", ("few", VALKEY), ("many", VALKEY), _rate_ratio, "<= 1.5x"),
    Ratio("few waiting / many, postgres", ("few", POSTGRES), ("many", POSTGRES), _rate_ratio, "<= 1.5x"),
    Ratio("none finished / many kept, postgres", ("few", POSTGRES), ("kept", POSTGRES), _rate_ratio, "<= 1.5x"),
    Ratio("one lane / many lanes, sqlite", ("few", SQLITE), ("lanes", SQLITE), _rate_ratio, "<= 1.5x"),
    Ratio("one lane / many lanes, valkey", ("few", VALKEY), ("lanes", VALKEY), _rate_ratio, "<= 1.5x"),
    Ratio("one lane / many lanes, postgres", ("few", POSTGRES), ("lanes", POSTGRES), _rate_ratio, "<= 1.5x"),
)  # fmt: skip
