"""How a command ends: the exit status of every error, its message, and what to do next.

The statuses are part of the public interface: 0 done, 1 the work failed, 2 misuse, 3 unreachable, 4 refused, and 70
for a bug in FlowFabric or damaged data. No error is shown without a next step.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import Final

from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, Unavailable


class Exit(IntEnum):
    """The exit statuses of `flowfabric`."""

    DONE = 0
    WORK_FAILED = 1
    MISUSE = 2
    UNREACHABLE = 3
    REFUSED = 4
    BUG = 70


class WorkFailed(FlowFabricError):
    """The work ended without a result, or a check found something wrong."""

    code = "work_failed"
    http_status = 409


MALFORMED: Final = frozenset({400, 413, 415, 422})
"""HTTP statuses of refusals that say the request itself is wrong: the caller's mistake, whoever noticed it."""

WORK_CODES: Final = frozenset(
    {"work_failed", "task_failed", "task_cancelled", "task_expired", "task_skipped"}
)

NEXT_STEPS: Final = {
    "unauthorized": "give the server's token with --token or in FLOWFABRIC_TOKEN",
    "execution_not_found": "`flowfabric list` shows what there is; finished work is removed when its retention ends",
    "attempt_not_found": "`flowfabric describe ID` shows how many attempts there are",
    "execution_not_active": "`flowfabric describe ID` shows how it ended; `flowfabric replay ID` runs it again",
    "execution_not_terminal": "`flowfabric wait ID` waits for its end, `flowfabric cancel ID` ends it",
    "execution_not_eligible": "`flowfabric describe ID` shows the state it is in",
    "execution_not_leaseable": "`flowfabric describe ID` shows the state it is in",
    "max_replays_exhausted": "submit it anew, or give it a policy with a higher max_replay_count",
    "idempotency_conflict": "use another --key, or the very same input and options as before",
    "lane_not_accepting": "`flowfabric lane list` shows the lanes' states, `flowfabric lane resume LANE` opens one",
    "route_limit_exceeded": "use fewer distinct combinations of kind and capabilities in one lane",
    "result_timeout": "the work goes on: `flowfabric wait ID` waits again, `flowfabric describe ID` shows where it is",
    "outcome_unknown": "`flowfabric list` and `flowfabric describe ID` show whether it happened",
    "corrupt": "stop what uses the store, copy its file, and run `flowfabric admin fsck`",
    "task_failed": "`flowfabric describe ID` shows its attempts, `flowfabric replay ID` runs it again",
    "task_cancelled": "`flowfabric replay ID` runs it again",
    "task_expired": "`flowfabric replay ID` runs it again with a new deadline",
    "work_failed": "`flowfabric describe ID` shows why",
}

NEXT_STEP_BY_STATUS: Final = {
    Exit.WORK_FAILED: "`flowfabric describe ID` shows why",
    Exit.MISUSE: "`{command} --help` shows how it is used",
    Exit.UNREACHABLE: "start `flowfabric serve` (or `flowfabric dev app.py`), or name a running one with --server URL",
    Exit.REFUSED: "`flowfabric describe ID` and `flowfabric lane list` show the state of things",
    Exit.BUG: "run it again with --debug and report what it prints",
}
STORE_UNREACHABLE: Final = "check that the store's server runs, and host and port in the URL"


def status_of(error: FlowFabricError) -> Exit:
    """Return the exit status of an error."""
    if error.code in WORK_CODES:
        return Exit.WORK_FAILED
    if isinstance(error, Unavailable):
        return Exit.UNREACHABLE
    if isinstance(error, Misuse):
        return Exit.MISUSE
    if isinstance(error, Refused):
        return Exit.MISUSE if error.http_status in MALFORMED else Exit.REFUSED
    return Exit.REFUSED if error.code == "result_timeout" else Exit.BUG


def next_step(error: FlowFabricError, command: str = "flowfabric") -> str:
    """Say what to do about an error; its details may carry a step of their own, `next`."""
    from flowfabric.backends.urls import kind_of

    given = error.details.get("next")
    if isinstance(given, str):
        return given
    if isinstance(error, Unavailable) and kind_of(error.message) is not None:
        # It begins with the URL of the store that was to be opened.
        return STORE_UNREACHABLE
    return NEXT_STEPS.get(error.code) or NEXT_STEP_BY_STATUS[status_of(error)].format(command=command)


def report(error: FlowFabricError, *, as_json: bool, command: str = "flowfabric") -> Exit:
    """Write an error to standard error and return the exit status it stands for."""
    status = status_of(error)
    if as_json:
        details = {name: value for name, value in error.details.items() if name != "next"}
        document = {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "details": details,
            "next": next_step(error, command),
        }
        print(json.dumps({"error": document}, ensure_ascii=False), file=sys.stderr)
        return status
    from flowfabric.cli.output import styled

    print(f"{styled('error', 'bold red')}: {error.message} ({error.code})", file=sys.stderr)
    print(f" {styled('next', 'bold')}: {next_step(error, command)}", file=sys.stderr)
    return status
