"""Looking at things and operating them, from a shell."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests.cli.running import Dev, answer, flowfabric


def test_list_filters_and_pages(running: Dev) -> None:
    """`list` filters by state, kind, lane and tag, and goes on from a cursor."""
    for name in ("one", "two", "three"):
        answer(
            "submit",
            "greet",
            "-i",
            json.dumps({"name": name}),
            "--tag",
            "page.x=1",
            "--wait",
            cwd=running.folder,
        )
    first = answer("list", "--tag", "page.x=1", "--limit", "2", "--state", "completed", cwd=running.folder)
    rest = answer(
        "list", "--tag", "page.x", "--kind", "greet", "--cursor", first["next_cursor"], cwd=running.folder
    )
    everything = answer("list", "--tag", "page.x", "--all", cwd=running.folder)
    assert (len(first["executions"]), len(rest["executions"]), len(everything["executions"])) == (2, 1, 3)
    assert answer("list", "--lane", "nobody", cwd=running.folder)["executions"] == []


def test_output_that_is_no_terminal_is_plain(running: Dev) -> None:
    """In a pipe a listing is aligned text without colours or frames."""
    answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=running.folder)
    done = flowfabric("list", cwd=running.folder)
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["ID", "KIND", "STATE", "LANE", "PRIORITY", "ATTEMPT", "CREATED", "TOOK"]
    assert rows and "\x1b" not in done.stdout


def test_describe_says_what_would_help(running: Dev) -> None:
    """`describe` of work that waits says for what, and what would let it run."""
    made = answer("submit", "nobody-does-this", cwd=running.folder)
    shown = flowfabric("describe", made["execution_id"][-36:][:8], cwd=running.folder).stdout
    assert "no live worker handles kind nobody-does-this" in shown
    assert "start a worker that runs nobody-does-this" in shown


def test_ambiguous_id_lists_candidates(tmp_path: Path) -> None:
    """A beginning that several ids share is refused with what they are; an unknown one is not found."""
    store = ("--store", "sqlite:///ids.db")
    for number in range(2):
        identity = f"{{fp:{number}}}:ab{number}00000-0000-4000-8000-000000000000"
        done = flowfabric(
            "admin", "execution", "create", "--execution-id", identity, "--kind", "k", *store, cwd=tmp_path,
        )  # fmt: skip
        if number == 0:
            assert done.returncode == 2, "admin does not make a store"
            flowfabric("submit", "k", *store, cwd=tmp_path)
            done = flowfabric(
                "admin", "execution", "create", "--execution-id", identity, "--kind", "k", *store, cwd=tmp_path,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
    ambiguous = flowfabric("describe", "ab", *store, cwd=tmp_path)
    found = answer("describe", "ab1", *store, cwd=tmp_path)
    unknown = flowfabric("describe", "ffffffffffff", *store, cwd=tmp_path)
    assert (ambiguous.returncode, "ab000000" in ambiguous.stderr, "ab100000" in ambiguous.stderr) == (
        2,
        True,
        True,
    )
    assert found["execution_id"].startswith("{fp:1}:ab1")
    assert (unknown.returncode, "execution_not_found" in unknown.stderr) == (4, True)


def test_lanes_open_and_close(running: Dev) -> None:
    """Pausing a lane holds its work back, draining refuses new work with 4, resuming lets both through."""
    paused = answer("lane", "pause", "gate", cwd=running.folder)
    held = answer("submit", "greet", "-i", '{"name": "x"}', "--lane", "gate", cwd=running.folder)
    waiting = answer("describe", held["execution_id"], cwd=running.folder)["waiting"]
    drained = answer("lane", "drain", "gate", cwd=running.folder)
    refused = flowfabric("submit", "greet", "--lane", "gate", cwd=running.folder)
    answer("lane", "resume", "gate", cwd=running.folder)
    states = {lane["lane"]: lane["state"] for lane in answer("lane", "list", cwd=running.folder)["lanes"]}
    assert (paused["state"], waiting["reason"], drained["previous"]) == ("paused", "lane_paused", "paused")
    assert (refused.returncode, "lane_not_accepting" in refused.stderr) == (4, True)
    assert states["gate"] == "active"


def test_workers_are_listed_and_marked_dead(running: Dev) -> None:
    """`workers list` shows who runs what; `workers mark-dead` of a stranger says so."""
    (worker,) = answer("workers", "list", cwd=running.folder)["workers"]
    stranger = answer("workers", "mark-dead", "nobody/1", cwd=running.folder)
    assert (worker["alive"], sorted(worker["kinds"])) == (True, ["greet", "refuse", "sleep"])
    assert stranger == {"status": "not_registered", "leases_expired": 0}


def test_backup_and_fsck_while_in_use(running: Dev, tmp_path: Path) -> None:
    """A store in use is checked and copied; the copy is a store of its own with the same executions."""
    answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=running.folder)
    copy = tmp_path / "copy.db"
    checked = answer("admin", "fsck", cwd=running.folder)
    copied = answer("admin", "backup", copy, cwd=running.folder)
    again = flowfabric("admin", "backup", copy, cwd=running.folder)
    listed = answer("list", "--all", "--store", f"sqlite:///{copy}", cwd=tmp_path)
    assert checked["executions"] > 0
    assert checked["findings"] == []
    assert copied["bytes"] == copy.stat().st_size
    assert len(listed["executions"]) >= checked["executions"]
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_fsck_exits_with_1_when_something_is_wrong(tmp_path: Path) -> None:
    """A store whose rows contradict each other makes `admin fsck` exit with 1 and name the invariant."""
    flowfabric("submit", "greet", "--store", "sqlite:///broken.db", cwd=tmp_path)
    with sqlite3.connect(tmp_path / "broken.db") as connection:
        connection.execute("UPDATE execution SET public_state = 'completed'")
    connection.close()
    done = flowfabric("admin", "fsck", "--store", "sqlite:///broken.db", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "S" in done.stdout


def test_every_operation_is_a_command(running: Dev) -> None:
    """`admin <concept> <verb>` takes the fields of the command as options and writes the reply REST would write."""
    made = answer("submit", "greet", "-i", '{"name": "x"}', "--delay", "1h", cwd=running.folder)
    short = made["execution_id"][-36:][:10]
    tagged = answer(
        "admin", "execution", "set-tags", "--execution-id", short, "--tags", "app.a=1", "--tags", "app.b=2",
        cwd=running.folder,
    )  # fmt: skip
    raised = answer(
        "admin",
        "execution",
        "change-priority",
        "--execution-id",
        short,
        "--priority",
        "99999",
        cwd=running.folder,
    )
    context = answer("admin", "execution", "read-context", "--execution-id", short, cwd=running.folder)
    frames = answer("admin", "stream", "read", "--execution-id", short, "--limit", "5", cwd=running.folder)
    assert tagged["tags"] == {"app.a": "1", "app.b": "2"}
    assert (raised["priority"], context["input"], frames["frames"]) == (9000, {"name": "x"}, [])


def test_operations_refuse_as_everywhere(running: Dev) -> None:
    """A missing field is misuse, a malformed one is misuse with its code, a state that says no is a refusal."""
    missing = flowfabric("admin", "lane", "set-state", "--lane", "x", cwd=running.folder)
    malformed = flowfabric(
        "admin", "lane", "set-state", "--lane", "a b", "--state", "paused", cwd=running.folder
    )
    unknown = flowfabric("admin", "lane", "set-state", "--lane", "x", "--state", "open", cwd=running.folder)
    refused = flowfabric(
        "admin", "execution", "read-info", "--execution-id", "{fp:0}:00000000-0000-4000-8000-000000000000",
        cwd=running.folder,
    )  # fmt: skip
    assert [done.returncode for done in (missing, malformed, unknown, refused)] == [2, 2, 2, 4]
    assert "--state" in missing.stderr
    assert "invalid_input" in malformed.stderr


def test_ping_says_what_it_is(running: Dev) -> None:
    """`admin ping` shows the store behind a URL and what an acknowledgement promises there."""
    found = answer("admin", "ping", "--server", running.url)
    assert (found["durability"], found["partitions"]["flow"]) == ("fsync", 256)
