"""Vectors for the functions of the store, and a way to try very many: each one is carried out and undone.

A vector is a statement. What it is made of follows from the names and types of the function's parameters: functions of
arrays get several commands, one for each position. Vectors come from a seeded generator, so a failure names the number
of the vector and comes again.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.postgres import functions, shapes
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Kind, Lane, Namespace, PartitionCounts, mint_uuid
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy
from flowfabric.contract.states import BlockingReason, FailureClass, LaneState
from tests.backends.filling import Made
from tests.postgres.servers import Node

PLAIN: Final = frozenset({"idempotency_forget"})
"""Functions that answer a plain value."""
CREATES: Final = frozenset({"execution_create", "enqueue_create"})

TRYING: Final = """
CREATE SCHEMA fuzz;

-- How many rows of the store this transaction has written so far.
CREATE FUNCTION fuzz.written() RETURNS numeric LANGUAGE sql AS $$
    SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_xact_user_tables WHERE schemaname = 'ff'
$$;

-- Carry out a statement, say what came of it, and undo it.
CREATE FUNCTION fuzz.try(p_statement text, OUT state text, OUT message text, OUT answer jsonb, OUT writes numeric)
LANGUAGE plpgsql AS $$
DECLARE
    before numeric := fuzz.written();
BEGIN
    EXECUTE p_statement INTO answer;
    writes := fuzz.written() - before;
    RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ001';
EXCEPTION WHEN sqlstate 'ZZ001' THEN
    NULL;
WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END
$$;

-- What is stored, as one number: every row of every table.
CREATE FUNCTION fuzz.digest() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found record;
    part text;
    whole text := '';
BEGIN
    FOR found IN SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace = 'ff'::regnamespace AND c.relkind = 'r' ORDER BY 1 LOOP
        EXECUTE format('SELECT md5(string_agg(t::text, E''\\n'' ORDER BY t::text)) FROM %s t', found.name) INTO part;
        whole := whole || coalesce(part, '-');
    END LOOP;
    RETURN md5(whole);
END
$$;

-- Carry out statements one after the other, say what they answered and what is stored then, and undo them.
CREATE FUNCTION fuzz.try_all(p_statements text[], OUT answers jsonb, OUT digest text) LANGUAGE plpgsql AS $$
DECLARE
    answer jsonb;
    statement text;
BEGIN
    -- What sequences give out is not undone.
    PERFORM setval('ff.execution_seq', 1000000, false);
    PERFORM setval(pg_get_serial_sequence('ff.route', 'id'), 1000000, false);
    answers := '[]';
    FOREACH statement IN ARRAY p_statements LOOP
        EXECUTE statement INTO answer;
        answers := answers || answer;
    END LOOP;
    digest := fuzz.digest();
    RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ001';
EXCEPTION WHEN sqlstate 'ZZ001' THEN
    NULL;
END
$$;
"""


SINGULAR: Final = {
    "classes": "class",
    "categories": "category",
    "indexes": "index",
    "attempt_indexes": "attempt_index",
    "capabilities": "capability",
}


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a function."""

    name: str
    kind: str
    is_array: bool

    @property
    def bare(self) -> str:
        """What one command's value is called: the name without prefix, and in the singular."""
        name = self.name.removeprefix("p_").removeprefix("expected_")
        if self.is_array:
            name = SINGULAR.get(name, name.removesuffix("s"))
        return "epoch" if name == "lease_epoch" else name


class Function(msgspec.Struct, frozen=True):
    """A function that adapters call."""

    name: str
    parameters: tuple[Parameter, ...]
    is_hot: bool
    """It takes one command for each position."""


def functions_of(node: Node, database: str) -> list[Function]:
    """Return the functions that adapters call, by name."""
    known = {found.name for found in functions.assemble(manual_clock=True).functions if found.is_public}
    rows = node.call(
        "SELECT p.proname, p.proargnames, p.proargmodes, array(SELECT format_type(t, NULL) FROM "
        "unnest(p.proargtypes::oid[]) WITH ORDINALITY AS x(t, n) ORDER BY n) FROM pg_proc p "
        "WHERE p.pronamespace = 'ff'::regnamespace ORDER BY 1",
        database=database,
    )
    found: list[Function] = []
    for name, names, _, types in rows:
        if name not in known:
            continue
        inputs = tuple(
            Parameter(parameter, kind.removesuffix("[]"), kind.endswith("[]"))
            for parameter, kind in zip(names or (), types, strict=False)
        )
        outputs = (names or [])[len(inputs) :]
        found.append(Function(name, inputs, bool(outputs) and outputs[0] == "at"))
    assert {function.name for function in found} == known
    return found


# Values -----------------------------------------------------------------------------------------------------------

Values = list[Any]
"""The arguments of a call: a value each, or a list of them."""

LIMITS: Final[dict[str, tuple[Any, ...]]] = {
    "smallint": (-32_768, -1, 0, 1, 77, 32_767),
    "integer": (-(2**31), -1, 0, 1, 2, 16, 65_535, 1_000_000, 2**31 - 1),
    "bigint": (-(2**63), -1, 0, 1, 100, 1_760_000_000_000, 2**53, 2**62, 2**63 - 1),
    "double precision": (-1e308, -0.0, 0.5, 100.0, 100.5, 1e308, float("nan"), float("inf"), float("-inf")),
    "boolean": (False, True),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "bytea": (b"", b"\0", b"\xff" * 9, b"x" * 70_000, b"{}", bytes(range(256))),
    "jsonb": ("null", "[]", "{}", '{"a":null}', '"x"', "3", '{"a.b":["c"]}', "[[[[[[1]]]]]]"),
    "text": (
        *(
            "",
            " ",
            "0",
            "1",
            "-1",
            "x",
            "NaN",
            "1e400",
            "{",
            "}",
            "{}",
            "[]",
            "null",
            "{1}",
            "{NULL}",
            "{{1},{2}}",
        ),
        *("{a,b}", '{"', "\\", "'", '"', "\n", "%", "%s", "\u00fc", "\u20ac" * 40, "x" * 70_000, '{"a":1}'),
        *("{1,2147483648}", "{-1}", '{"namespace":1}', "00000000-0000-0000-0000-000000000000"),
    ),
}
WORDS: Final[dict[str, tuple[Any, ...]]] = {
    "actor": ("", "me"),
    "category": ("", "odd"),
    "class": tuple(kind.value for kind in FailureClass),
    "digest": ("", "d" * 32),
    "fault": (None, None, None, "summary_too_large", "invalid_input"),
    "instance": ("w-1", "v-1", "u-1"),
    "lane": ("default", "paused", "closed", "lane-1", "lane-2"),
    "message": (None, "", "why"),
    "namespace": ("default", "other"),
    "percent": (None, 0.0, 12.5, 100.0),
    "priority": (0, 1, -5, 1_000),
    "purpose": (None, "claim", "resume", "reclaim"),
    "reason": ("because", *(reason.value for reason in BlockingReason)),
    "state": tuple(state.value for state in LaneState),
    "tag": ("{}", '{"a.b":"c"}'),
    "type": (None, "application/json", "text/plain"),
    "worker_id": ("w", "v"),
    "worker_instance": ("w-1", "v-1"),
    "capability": ("gpu", "eu"),
    "kind": ("k", "k2"),
    "default": (b'{"kind":"k"}', b'{"kind":"k","priority":3}'),
    "details": (b'{"lanes":["default"],"kinds":["k"],"capabilities":[]}',),
}
"""What values of these names may say."""
OPTIONAL: Final = frozenset(
    {"actor", "lane", "route", "claim_id", "detail", "most", "reason", "cancelled_by"}
)
FRAME_FIRST: Final = "p_modes"
"""From this parameter on, `stream_append` has any number of values for each command."""


def literal(value: Any, kind: str) -> str:
    """Write a value as SQL."""
    if value is None:
        return f"NULL::{kind}"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + f"'::{kind}"
    return f"'{value}'::{kind}"


def arguments(function: Function, values: Values) -> str:
    """Write the arguments of a call."""
    written: list[str] = []
    for parameter, value in zip(function.parameters, values, strict=True):
        if parameter.is_array and value is not None:
            items = ", ".join(literal(item, parameter.kind) for item in value)
            written.append(f"ARRAY[{items}]::{parameter.kind}[]")
        else:
            written.append(literal(value, parameter.kind + ("[]" if parameter.is_array else "")))
    return ", ".join(written)


def statement(function: Function, values: Values) -> str:
    """Write a call: it answers one JSON array of rows, or a plain value."""
    call = f"ff.{function.name}({arguments(function, values)})"
    if function.name in PLAIN:
        return f"SELECT to_jsonb({call})"
    return f"SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM {call} AS t"


def shown(values: Values) -> str:
    """Show the arguments of a call, long ones cut short."""

    def short(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(short, value))}]"
        return f"{value!r:.60}"

    return f"{short(values):.3000}"


class Generator:
    """Makes vectors for one function."""

    def __init__(self, function: Function, subjects: Sequence[Made], *, seed: str = "") -> None:
        self.function: Final = function
        self._subjects = subjects
        fenced = any(parameter.name.startswith("p_lease_id") for parameter in function.parameters)
        self._preferred = [made for made in subjects if made.lease is not None] if fenced else subjects
        self._random = random.Random(function.name + seed)

    def plausible(self, *, most: int = 4) -> Values:
        """Make the arguments of a call that looks right, of several commands where there can be."""
        function = self.function
        if not function.is_hot:
            return self.command()
        return self.batch(self.commands(most))

    def commands(self, most: int) -> list[Values]:
        """Make commands about different executions."""
        wanted = self._random.choice((1, 1, 2, most))
        subjects = self._random.sample(self._preferred, min(wanted, len(self._preferred)))
        return [self.command(subject) for subject in subjects]

    def batch(self, commands: Sequence[Values]) -> Values:
        """Put commands together."""
        spread = self._spread()
        columns: Values = [list(column) for column in zip(*commands, strict=True)]
        return [
            [item for part in column for item in part] if at >= spread else column
            for at, column in enumerate(columns)
        ]

    def command(self, subject: Made | None = None) -> Values:
        """Make one command: a value for each parameter (a list for those that spread, or are arrays of their own)."""
        chosen = self._random
        if subject is None:
            subject = chosen.choice(self._preferred if chosen.random() < 0.8 else self._subjects)
        if self.function.name in CREATES:
            return self._create()
        fence = subject.lease.fence if subject.lease is not None and chosen.random() < 0.9 else None
        frames = chosen.choice((1, 1, 2, 5))
        values: Values = []
        for at, parameter in enumerate(self.function.parameters):
            if self.function.name == "stream_append" and at >= self._spread():
                values.append([self._frame(parameter.name, number) for number in range(frames)])
            elif parameter.name == "p_held":
                values.append(frames)
            elif parameter.is_array and not self.function.is_hot:
                values.append(
                    [self._value(parameter, subject, fence) for _ in range(chosen.choice((0, 1, 2)))]
                )
            else:
                values.append(self._value(parameter, subject, fence))
        if self.function.name == "worker_register":
            values[-1] = [json.dumps({"kind": kind}).encode() for kind in values[-2]]
        if self.function.name == "execution_complete" and None in values[-2:]:
            values[-2:] = [None, None]
        return values

    def malformed(self) -> Values:
        """Make arguments that looked right, with one to three things wrong."""
        values = self.plausible()
        for _ in range(self._random.choice((1, 1, 2, 3))):
            self._spoil(values)
        return values

    def _spoil(self, values: Values) -> None:
        chosen = self._random
        at = chosen.randrange(len(values))
        parameter, value = self.function.parameters[at], values[at]
        if parameter.name == "p_faults":
            # A code that the adapter has worked out, and that is answered as it is.
            return
        if not parameter.is_array:
            values[at] = self._odd(parameter.kind)
            return
        if value is None:
            return
        items: list[Any] = list(value)
        where = chosen.randrange(len(items)) if items else 0
        match chosen.randrange(6):
            case 0:
                del items[where : where + 1]
            case 1:
                items.insert(where, self._odd(parameter.kind))
            case 2:
                items = []
            case 3 if items:
                items[where] = None
            case 4 if chosen.random() < 0.3:
                values[at] = None
                return
            case _ if items:
                items[where] = self._odd(parameter.kind)
            case _:
                items.append(self._odd(parameter.kind))
        values[at] = items

    def _odd(self, kind: str) -> Any:
        return self._random.choice((None, *LIMITS[kind])) if kind in LIMITS else None

    def _spread(self) -> int:
        names = [parameter.name for parameter in self.function.parameters]
        return names.index(FRAME_FIRST) if self.function.name == "stream_append" else len(names)

    def _value(self, parameter: Parameter, subject: Made, fence: Fence | None) -> Any:
        chosen, name = self._random, parameter.bare
        match name:
            case "partition":
                return int(subject.execution_id[4:-38])
            case "id":
                return mint_uuid() if chosen.random() < 0.03 else subject.execution_id[-36:]
            case "lease_id" if parameter.name.startswith("p_lease_id"):
                return fence.lease_id if fence is not None else None
            case "attempt_id" if fence is not None:
                return fence.attempt_id
            case "epoch":
                return fence.lease_epoch if fence is not None else None
            case "lane" if fence is not None and self.function.name != "lane_set_state":
                return chosen.choice((fence.lane, fence.lane, None))
            case "route" if self.function.name == "lease_claim":
                routes = chosen.sample(range(1, 40), chosen.choice((0, 1, 3)))
                return "{" + ",".join(map(str, routes)) + "}"
            case "route":
                return chosen.choice(("k|", "k|", None))
            case "known":
                return 2**31 - 1
            case "most" | "limit":
                return chosen.choice((0, 1, 2, 50))
            case "ttl" | "ttl_ms" | "liveness_ttl_ms":
                return chosen.choice((1_000, 60_000))
            case "first":
                return chosen.choice((1, 1, 2, 3, 4))
            case "seen":
                return chosen.choice((None, 0, 2))
            case "document":
                return chosen.choice((None, b'{"a":1}'))
            case "attempt_index":
                return chosen.choice((0, 0, 0, 0, 1))
            case "reason" if self.function.name == "execution_expire":
                return chosen.choice(("attempt_timeout", "execution_deadline"))
            case "delay_until_ms":
                now_ms = int(time.time() * 1_000)
                return chosen.choice((0, now_ms, now_ms + 100_000))
            case "expected" if parameter.kind == "integer":
                return chosen.choice((None, 0, 1))
            case _ if name in WORDS:
                return chosen.choice(WORDS[name])
            case _ if parameter.kind == "uuid":
                return mint_uuid() if chosen.random() < 0.7 or name in OPTIONAL else None
            case _ if parameter.kind == "boolean":
                return chosen.random() < 0.5
            case _ if parameter.kind == "bytea":
                return chosen.choice((None, b"1", b"x" * 20_000)) if name == "result" else b"{}"
            case _:
                return chosen.choice((None, "because") if parameter.kind == "text" else (0, 1))

    def _frame(self, name: str, number: int) -> Any:
        mode = ("durable", "summary", "best_effort")[(number + self._random.randrange(2)) % 3]
        return {
            "p_modes": mode,
            "p_ttls": 60_000,
            "p_frame_types": "x",
            "p_content_types": "application/json",
            "p_correlation_ids": None,
            "p_summary_versions": number + 1,
            "p_payloads": b'{"a":1}',
        }[name]

    def _create(self) -> Values:
        """Prepare a create as the adapter does."""
        chosen = self._random
        counts = PartitionCounts(flow=16)
        known = ExecutionId(chosen.choice(self._subjects).execution_id)
        policy = ExecutionPolicy()
        if chosen.random() < 0.5:
            policy = ExecutionPolicy(
                retry_policy=RetryPolicy(
                    backoff=FixedBackoff(delay_ms=chosen.choice((0, 10))), retryable_categories=("odd",)
                )
            )
        now_ms = int(time.time() * 1_000)
        command = ExecutionCreate(
            kind=Kind("unpublished"),
            lane=Lane(chosen.choice(WORDS["lane"])),
            namespace=Namespace(chosen.choice(WORDS["namespace"])),
            execution_id=known if chosen.random() < 0.1 else None,
            idempotency_key=f"key {chosen.randrange(5)}" if chosen.random() < 0.3 else None,
            input=Payload(chosen.choice((b"1", b"x" * 20_000))),
            delay_until_ms=chosen.choice((None, 5, now_ms + 100_000)),
            deadline_at_ms=chosen.choice((None, now_ms + 100_000)),
            tags=chosen.choice(({}, {"a.b": "c"})),
            policy=policy,
        )
        if command.execution_id is not None and command.idempotency_key is not None:
            command = msgspec.structs.replace(command, idempotency_key=None)
        return list(shapes.prepare(command, None, counts, 86_400_000).values)
