"""Comparing an execution's row with its definition, and its index entries with what they should be.

A page has thousands of executions, most of them right and with one of a few policies, so what follows from a policy is
worked out once. Only what is found to differ is looked at closely, and put in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.invariants import Problem
from flowfabric.backends.postgres.driver import Record
from flowfabric.backends.postgres.record import execution_id_of
from flowfabric.backends.postgres.shapes import Shape, shape_of
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import ExecutionDefinition

POLICIES_MAX: Final = 4_096
"""How many policies are remembered."""
_OWN: Final = slice(6, 14)
"""Columns of a row of statement `page` that copy the definition: namespace to absolute_deadline_ms, the route's."""
_OF_POLICY: Final = slice(14, None)
"""Columns that copy its policy, in the order of `_FROM_POLICY`."""
_FROM_POLICY: Final = Shape.__struct_fields__[Shape.__struct_fields__.index("max_retries") :]
_ENTRIES: Final = (
    ("due_kind", "kind of timer"),
    ("due_at_ms", "timer"),
    ("holder", "holder"),
    ("claim_id", "claim"),
    ("lost_at_ms", "loss"),
)


class _Outline(msgspec.Struct, omit_defaults=True):
    """A definition whose policy is left as it is stored."""

    execution_id: str
    namespace: str
    lane: str
    kind: str
    route: str
    digest: str
    created_at_ms: int
    required_capabilities: list[str] = []
    creator: str = ""
    idempotency_key: str | None = None
    policy: msgspec.Raw = msgspec.Raw(b"")
    kind_known: bool = False
    traceparent: str | None = None
    deadline_at_ms: int | None = None
    flow_id: str | None = None


_OUTLINE: Final = msgspec.msgpack.Decoder(_Outline)
assert set(_Outline.__struct_fields__) == set(ExecutionDefinition.__struct_fields__)


class Definitions:
    """Compares rows of statement `page` with their definitions."""

    def __init__(self) -> None:
        self._policies: dict[bytes, tuple[Any, ...]] = {}

    def problems(self, row: Record) -> list[Problem]:
        """Return in what an execution's row differs from its definition."""
        return [] if self._agree(row) else list(_differences(row))

    def _agree(self, row: Record) -> bool:
        document: bytes | None = row[3]
        if document is None:
            return False
        try:
            found = _OUTLINE.decode(document)
            policy = self._policies.get(bytes(found.policy))
            if policy is None:
                policy = self._learn(bytes(found.policy), document)
        except (msgspec.MsgspecError, Corrupt):
            return False
        return (
            found.execution_id == f"{{fp:{row[2]}}}:{row[1]}"
            and row[_OF_POLICY] == policy
            and row[_OWN]
            == (
                found.namespace,
                found.lane,
                found.kind,
                found.route,
                found.digest,
                found.deadline_at_ms,
                found.required_capabilities,
                True,
            )
        )

    def _learn(self, stored: bytes, document: bytes) -> tuple[Any, ...]:
        """Work out what follows from a policy that was not seen before, as it is stored in a document."""
        shape = shape_of(decode_definition(document, 0), None)
        if len(self._policies) >= POLICIES_MAX:
            self._policies.clear()
        found = tuple(_listed(getattr(shape, name)) for name in _FROM_POLICY)
        self._policies[stored] = found
        return found


def _differences(row: Record) -> Iterator[Problem]:
    if row["document"] is None:
        yield "S5 one create, one record", "its definition is missing"
        return
    try:
        definition = decode_definition(row["document"], 0)
    except Corrupt as error:
        yield "S5 one create, one record", error.message
        return
    if definition.execution_id != execution_id_of(row["partition"], row["id"]):
        yield "S5 one create, one record", f"its definition is that of {definition.execution_id}"
    if definition.digest != row["digest"]:
        yield "S5 one create, one record", "its digest is not that of its definition"
    if not row["routed"]:
        yield "S10 index and record agree (definition)", "it points to another route than its own"
    shape = shape_of(definition, None)
    names = ("namespace", "lane", "kind", "route", "required", *_FROM_POLICY)
    differing = [name for name in names if row[name] != _listed(getattr(shape, name))]
    if row["absolute_deadline_ms"] != definition.deadline_at_ms:
        differing.append("absolute_deadline_ms")
    if differing:
        yield (
            "S10 index and record agree (definition)",
            f"{', '.join(differing)} differ from its definition",
        )


def entry_problems(row: Record) -> str:
    """Say in words how the index entries of an execution differ from what they should be."""
    wrong: list[str] = []
    ready = row["seq"] if row["ready"] else None
    if row["has_ready"] != ready:
        wrong.append(
            f"its entry in the eligible index is {_shown(row['has_ready'])}, should be {_shown(ready)}"
        )
    wrong += [
        f"its {words} is {_shown(row[f'has_{name}'])}, should be {_shown(row[name])}"
        for name, words in _ENTRIES
        if row[name] != row[f"has_{name}"]
    ]
    if not row["named"]:
        wrong.append("its timer names another execution")
    return "; ".join(wrong)


def _listed(value: Any) -> Any:
    """Return a value as the driver does: arrays are lists."""
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] -- of texts


def _shown(value: Any) -> str:
    return "missing" if value is None else str(value)
