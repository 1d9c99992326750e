"""Submitting, watching, waiting, cancelling and replaying, from a shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.running import Dev, answer, environment, flowfabric


def test_submit_with_tail_shows_output_and_result(running: Dev) -> None:
    """`submit --tail` finds the dev that runs in its folder and writes frames, then the result, to standard output."""
    done = flowfabric("submit", "greet", "--input", '{"name": "Ada"}', "--tail", cwd=running.folder)
    assert (done.returncode, done.stdout) == (0, 'hello Ada\n{"to":"Ada"}\n"greeted Ada"\n')
    assert "submitted {fp:" in done.stderr


def test_json_is_one_document_a_line(running: Dev) -> None:
    """`submit --tail --json` writes one JSON document a line: frames with cursors, then the end."""
    done = flowfabric("submit", "greet", "-i", '{"name": "Bo"}', "--tail", "--json", cwd=running.folder)
    marker, first, second, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert marker["frame_type"] == "attempt_started"
    assert (first["payload"], second["payload"]) == ("hello Bo", {"to": "Bo"})
    assert first["cursor"].startswith("0:")
    assert (end["status"], end["result"]) == ("completed", "greeted Bo")


def test_input_comes_from_a_file_or_standard_input(running: Dev) -> None:
    """`--input @FILE` and `--input -` read the input from elsewhere."""
    (running.folder / "input.json").write_text('{"name": "file"}', encoding="utf-8")
    from_file = flowfabric("submit", "greet", "--input", "@input.json", "--wait", cwd=running.folder)
    piped = flowfabric("submit", "greet", "-i", "-", "--wait", cwd=running.folder, text='{"name": "pipe"}')
    assert (from_file.stdout, piped.stdout) == ('"greeted file"\n', '"greeted pipe"\n')


def test_work_that_fails_exits_with_1(running: Dev) -> None:
    """Waiting for work that fails exits with 1, says why, and says what to do."""
    done = flowfabric("submit", "refuse", "--wait", cwd=running.folder)
    assert done.returncode == 1
    assert "no, thank you" in done.stderr
    assert "flowfabric describe" in done.stderr


def test_input_that_does_not_fit_fails_with_its_place(running: Dev) -> None:
    """An input the task does not take ends the work with the name of what is wrong."""
    done = flowfabric("submit", "greet", "-i", '{"called": "x"}', "--wait", cwd=running.folder)
    assert done.returncode == 1
    assert "`called`" in done.stderr


def test_options_reach_the_execution(running: Dev) -> None:
    """Lane, priority, tags, key and delay given to `submit` are those of the execution."""
    made = answer(
        "submit", "greet", "-i", '{"name": "x"}', "--lane", "slow", "--priority", "7", "--tag", "app.team=a",
        "--key", "options-1", "--delay", "1h", cwd=running.folder,
    )  # fmt: skip
    again = answer(
        "submit", "greet", "-i", '{"name": "x"}', "--lane", "slow", "--priority", "7", "--tag", "app.team=a",
        "--key", "options-1", "--delay", "1h", cwd=running.folder,
    )  # fmt: skip
    found = answer("describe", made["execution_id"][-36:][:8], cwd=running.folder)
    assert (made["status"], again["status"]) == ("created", "duplicate")
    assert (found["lane"], found["priority"], found["tags"]) == ("slow", 7, {"app.team": "a"})
    assert (found["public_state"], found["idempotency_key"]) == ("delayed", "options-1")


def test_key_with_other_content_is_refused(running: Dev) -> None:
    """The same key with another input exits with 4."""
    first = flowfabric("submit", "greet", "-i", '{"name": "a"}', "--key", "conflict-1", cwd=running.folder)
    second = flowfabric("submit", "greet", "-i", '{"name": "b"}', "--key", "conflict-1", cwd=running.folder)
    assert (first.returncode, second.returncode) == (0, 4)
    assert "idempotency_conflict" in second.stderr


def test_tail_goes_on_from_a_cursor(running: Dev) -> None:
    """`tail --from CURSOR` shows what came after that frame."""
    made = answer("submit", "greet", "-i", '{"name": "Cy"}', "--wait", cwd=running.folder)
    lines = flowfabric("tail", made["execution_id"], "--json", cwd=running.folder).stdout.splitlines()
    cursor = json.loads(lines[1])["cursor"]
    rest = flowfabric("tail", made["execution_id"][-36:][:10], "--from", cursor, cwd=running.folder)
    assert (rest.returncode, rest.stdout) == (0, '{"to":"Cy"}\n')


def test_cancel_replay_and_wait(running: Dev) -> None:
    """Running work can be cancelled, waiting for it then exits with 1, and replay runs it again."""
    made = answer("submit", "sleep", "-i", '{"seconds": 600}', cwd=running.folder)
    short = made["execution_id"][-36:][:10]
    waited = flowfabric("wait", short, "--timeout", "100ms", cwd=running.folder)
    cancelled = flowfabric("cancel", short, "--reason", "enough", cwd=running.folder)
    again = flowfabric("cancel", short, cwd=running.folder)
    ended = flowfabric("wait", short, cwd=running.folder)
    replayed = answer("replay", short, cwd=running.folder)
    flowfabric("cancel", short, cwd=running.folder)
    assert (waited.returncode, "result_timeout" in waited.stderr) == (4, True)
    assert (cancelled.returncode, again.returncode) == (0, 0)
    assert "was cancelled before" in again.stdout
    assert (ended.returncode, "enough" in ended.stderr) == (1, True)
    assert replayed["replay_count"] == 1


def test_interrupted_tail_ends_quietly(running: Dev) -> None:
    """Ctrl-C ends a `tail` with status 130 and no traceback; the work goes on."""
    made = answer("submit", "sleep", "-i", '{"seconds": 600}', cwd=running.folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "flowfabric", "tail", made["execution_id"]],
        cwd=running.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    state = answer("describe", made["execution_id"], cwd=running.folder)["public_state"]
    flowfabric("cancel", made["execution_id"], cwd=running.folder)
    assert (process.returncode, "Traceback" in errors, state) == (130, False, "active")


def test_store_takes_work_without_a_server(tmp_path: Path) -> None:
    """With `--store` work is submitted straight into a store, and says that nobody runs it yet."""
    done = flowfabric("submit", "greet", "-i", '{"name": "x"}', "--store", "sqlite:///own.db", cwd=tmp_path)
    listed = answer("list", "--store", "sqlite:///own.db", cwd=tmp_path)
    assert done.returncode == 0
    assert "no worker has announced the kind greet" in done.stderr
    assert [info["public_state"] for info in listed["executions"]] == ["waiting"]
