"""Measuring: rounds in fresh processes, medians, CPU time of a process, percentiles."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.servers import Build

ROUND_S: Final = 1_200
"""How long a round may take, unless its row says otherwise."""


@dataclass
class Stopwatch:
    """Wall and CPU time of this process between `start` and `stop`, in seconds."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    _wall: float = field(default=0.0, repr=False)
    _cpu: float = field(default=0.0, repr=False)

    def start(self) -> Stopwatch:
        """Begin."""
        self._wall, self._cpu = time.perf_counter(), own_cpu_s()
        return self

    def stop(self) -> Stopwatch:
        """End."""
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = own_cpu_s() - self._cpu
        return self


def own_cpu_s() -> float:
    """Return user plus system CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def process_cpu_s(pid: int) -> float:
    """Return user plus system CPU seconds of another process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run_child(scenario: str, options: dict[str, Any], *, limit_s: float = ROUND_S) -> dict[str, Any]:
    """Run one round of a scenario in a fresh process and return its figures; after `limit_s` it hangs."""
    command = [sys.executable, "-m", "bench.child", scenario, json.dumps(options)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"scenario {scenario} did not end within {limit_s} s") from late
    if done.returncode != 0:
        raise RuntimeError(f"scenario {scenario} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each numeric figure over several rounds, and of the rate the least and the largest."""
    merged: dict[str, Any] = {}
    for key, value in rounds[0].items():
        if isinstance(value, (int, float)):
            merged[key] = statistics.median(result[key] for result in rounds)
        else:
            merged[key] = value
    if len(rounds) > 1 and "per_s" in merged:
        rates = [result["per_s"] for result in rounds]
        merged |= {"per_s_least": min(rates), "per_s_most": max(rates)}
    return merged | {"rounds": len(rounds)}


def machine(build: Build | None) -> dict[str, Any]:
    """Describe what the figures were taken on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "sqlite": sqlite3.sqlite_version,
        "valkey": build.text if build is not None else "none",
    }
