"""Batches: a call among others means what it means alone, and what one comes to is nothing to the next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowfabric.contract import limits, wire_batch
from flowfabric.contract.operations import OPERATIONS
from tests.server.conftest import Start
from tests.server.talking import Reply, Site
from tests.server.test_problems import MALFORMED

CREATE = "execution.create"
UNKNOWN = "{fp:7}:550e8400-e29b-41d4-a716-446655440000"
FENCE = {"lease_id": UNKNOWN[-36:], "lease_epoch": 1, "attempt_id": UNKNOWN[-36:]}


async def batch(site: Site, *calls: list[Any]) -> list[tuple[int, Any]]:
    """Send a batch and return the status and body of each answer."""
    reply = await site.post("/v1/batch", list(calls))
    assert reply.status == 200, reply.body
    return [(status, body) for status, body in reply.json]


async def executions(site: Site) -> list[Any]:
    """List what there is."""
    return (await site.get("/v1/executions")).json["executions"]


async def test_each_call_has_its_own_outcome(site: Site) -> None:
    """Calls that are carried out stand beside calls that are refused; answers come in the order of the calls.

    Acceptance: calls-of-a-batch-are-independent
    """
    answers = await batch(
        site,
        [CREATE, {"kind": "k", "input": {"n": 1}}],
        [CREATE, {"kind": "a{b}"}],
        ["execution.complete", {"execution_id": UNKNOWN, "fence": FENCE}],
        [CREATE, {"kind": "k", "input": {"n": 2}}],
    )
    assert [status for status, _ in answers] == [201, 400, 404, 201]
    assert [answers[1][1]["error"]["code"], answers[2][1]["error"]["code"]] == [
        "invalid_input",
        "execution_not_found",
    ]
    created = {answers[0][1]["execution_id"], answers[3][1]["execution_id"]}
    assert {info["execution_id"] for info in await executions(site)} == created


async def test_a_life_in_batches(site: Site) -> None:
    """Work can be submitted, renewed, written about and completed in batches; payloads are kept to the byte."""
    inputs = [b'{"b" :1,  "a":2}', b'"\\u00e4"', b"1.50"]
    text = b",".join(b'["execution.create",{"kind":"k","input":%b}]' % each for each in inputs)
    reply = await site.send("POST", "/v1/batch", data=b"[" + text + b"]")
    assert [status for status, _ in reply.json] == [201, 201, 201]
    leases = [await site.claim() for _ in inputs]
    assert sorted(lease.input.data for lease in leases) == sorted(inputs)
    fences = [json.loads(json.dumps(_fence(lease))) for lease in leases]
    renewed = await batch(
        site,
        *(
            ["lease.renew", {"execution_id": lease.execution_id, "fence": fence}]
            for lease, fence in zip(leases, fences, strict=True)
        ),
    )
    assert [status for status, _ in renewed] == [200, 200, 200]
    ended = await batch(
        site,
        *(
            ["execution.complete", {"execution_id": lease.execution_id, "fence": fence, "result": number}]
            for number, (lease, fence) in enumerate(zip(leases, fences, strict=True))
        ),
    )
    assert [body["public_state"] for _, body in ended] == ["completed"] * 3


def _fence(lease: Any) -> dict[str, Any]:
    return {name: getattr(lease, name) for name in ("lease_id", "lease_epoch", "attempt_id", "lane", "route")}


@pytest.mark.parametrize(("body", "status", "code"), MALFORMED)
async def test_malformed_commands(site: Site, body: bytes, status: int, code: str) -> None:
    """A malformed command is answered as it is alone; what is no JSON at all refuses the batch. Nothing is created."""
    reply = await site.send("POST", "/v1/batch", data=b'[["execution.create",%b]]' % body)
    if reply.status == 200:
        ((found, answer),) = reply.json
        assert (found, answer["error"]["code"]) == (status, code)
    else:
        assert (reply.status, reply.code) == (400, "invalid_json")
        assert code == "invalid_json" or not body or b"NaN" in body
    assert await executions(site) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{}", 422, "invalid_body"),
        (b"[]", 400, "invalid_input"),
        (b"[[]]", 422, "invalid_body"),
        (b'[["execution.create"]]', 422, "invalid_body"),
        (b"[[1,{}]]", 422, "invalid_body"),
        (b'[["execution.create",{"kind":"k"},1]]', 422, "invalid_body"),
        (b'[["execution.create",{"kind":"k"},null,1]]', 422, "invalid_body"),
        (b"[" + b",".join([b'["execution.create",{"kind":"k"}]'] * 101) + b"]", 400, "invalid_input"),
    ],
)
async def test_malformed_batches(site: Site, body: bytes, status: int, code: str) -> None:
    """A batch of another shape is refused as a whole, and nothing of it is carried out."""
    reply = await site.send("POST", "/v1/batch", data=body)
    assert (reply.status, reply.code) == (status, code), reply.body
    assert await executions(site) == []


@pytest.mark.parametrize("name", ["execution.describe", "lease.claim", "stream.tail", "nope", ""])
async def test_what_batches_do_not_take(site: Site, name: str) -> None:
    """What reads or waits is called by its own route; so is what does not exist."""
    (refused, created) = await batch(site, [name, {}], [CREATE, {"kind": "k"}])
    assert (refused[0], refused[1]["error"]["code"]) == (400, "invalid_input")
    assert created[0] == 201


@pytest.mark.parametrize("name", sorted(wire_batch.MEMBERS))
async def test_members_answer_alike(site: Site, name: str) -> None:
    """An empty command of every operation is refused in a batch as it is on a route that binds no fields."""
    ((status, body),) = await batch(site, [name, {}])
    own = {refusal.code for refusal in OPERATIONS[name].refuses} | {"invalid_body", "invalid_input"}
    assert status in (400, 404, 409, 422)
    assert body["error"]["code"] in own


async def test_a_call_too_large(site: Site) -> None:
    """One call that is larger than its operation takes is refused; the others are carried out."""
    large = "x" * (limits.BODY_CONTROL_MAX + 2_000)
    answers = await batch(
        site,
        ["execution.cancel", {"execution_id": UNKNOWN, "reason": large}],
        [CREATE, {"kind": "k", "input": large}],
    )
    assert [status for status, _ in answers] == [413, 201]
    reply = await site.send("POST", "/v1/batch", data=b"[" + b" " * limits.BODY_BATCH_MAX + b"]")
    assert (reply.status, reply.code) == (413, "payload_too_large")


async def test_who_is_let_in(start: Start) -> None:
    """A batch needs the token that its calls need."""
    guarded = await start({"FF_API_TOKEN": "t" * 40})
    call = [[CREATE, {"kind": "k"}]]
    assert (await guarded.post("/v1/batch", call)).status == 200
    refused = await guarded.post("/v1/batch", call, headers={"authorization": "Bearer no"})
    assert (refused.status, refused.code) == (401, "unauthorized")
    typed = await guarded.send("POST", "/v1/batch", data=b"[]", headers={"content-type": "text/plain"})
    assert (typed.status, typed.code) == (415, "unsupported_content_type")


async def test_a_bug_costs_one_call(start: Start) -> None:
    """A call that meets a bug is answered so, with an id that the log has; the others are carried out."""
    site = await start()
    whole = site.backend.execution.create
    broken = {"left": 1}

    async def create(command: Any) -> Any:
        if broken["left"]:
            broken["left"] -= 1
            raise ZeroDivisionError("secret")
        return await whole(command)

    site.backend.execution.create = create  # pyright: ignore[reportAttributeAccessIssue]
    answers = await batch(site, [CREATE, {"kind": "k"}], [CREATE, {"kind": "k"}])
    assert [status for status, _ in answers] == [500, 201]
    assert answers[0][1]["error"]["code"] == "internal"
    assert "secret" not in json.dumps(answers)


async def test_every_call_is_counted(site: Site) -> None:
    """Metrics count a batch as one request, and each of its calls as an operation."""

    async def counted(name: str) -> float:
        lines = (await site.get("/metrics")).body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    requests, operations = 'ff_http_requests_total{method="POST",path="/v1/batch"', "ff_operations_total{"
    before = await counted(requests), await counted(operations)
    await batch(site, [CREATE, {"kind": "k"}], [CREATE, {"kind": "k"}], [CREATE, {}])
    assert await counted(requests) - before[0] == 1
    assert await counted(operations) - before[1] >= 2


async def test_it_is_described(site: Site) -> None:
    """The description of the server says what a batch looks like, and names every operation it takes."""
    document = (await site.get("/openapi.json")).json
    item = document["paths"]["/v1/batch"]["post"]
    assert item["requestBody"]["content"]["application/json"]["schema"]["maxItems"] == limits.BATCH_CALLS_MAX
    for name in wire_batch.MEMBERS:
        assert f'"{name}"' in json.dumps(document["components"]["schemas"]["BatchCall"])
    reply: Reply = await site.send("OPTIONS", "/v1/batch")
    assert reply.headers["allow"] == "OPTIONS, POST"
