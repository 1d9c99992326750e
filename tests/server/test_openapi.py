"""The OpenAPI document: complete, well-formed, and true of what the server answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import CHECKS

from flowfabric.contract import errors, ids
from flowfabric.contract.operations import OPERATIONS, Operation, Route
from flowfabric.server import openapi
from flowfabric.server.field_docs import field_docs
from flowfabric.server.openapi_schemas import IDENTIFIERS
from flowfabric.server.routing import OTHER_ENDPOINTS
from tests.server.served import Served, served_in_thread

UUID = "550e8400-e29b-41d4-a716-446655440000"
METHODS = {"get", "post", "put"}
ROUTES = [
    pytest.param(operation, number, route, id=f"{operation.name} {route.method} {route.path}")
    for operation in OPERATIONS.values()
    for number, route in enumerate(operation.routes, start=1)
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document."""
    return openapi.build("1.2.3")


def items(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Go through (path, method, operation)."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    """Go through every reference."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, if it is one."""
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def codes_of(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, set[str]]:
    """Return the codes that an operation's answers name, by status."""
    return {
        status: set(re.findall(r"^- `([a-z_]+)`: ", resolve(document, answer)["description"], re.MULTILINE))
        for status, answer in operation["responses"].items()
        if not status.startswith("2")
    }


# Its form ---------------------------------------------------------------------------------------------------------


def test_building_again() -> None:
    """The document is the same however often and wherever it is built."""
    program = "import json; from flowfabric.server import openapi; print(json.dumps(openapi.build('1.2.3')))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert texts == {json.dumps(openapi.build("1.2.3"))}


def test_version(document: dict[str, Any]) -> None:
    """It is OpenAPI 3.1 and says which version of FlowFabric it describes."""
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"


def test_references(document: dict[str, Any]) -> None:
    """Every reference leads somewhere, and every component is used."""
    found = set(references(document))
    for reference in found:
        assert resolve(document, {"$ref": reference})
    for group in ("schemas", "responses"):
        for name in document["components"][group]:
            assert f"#/components/{group}/{name}" in found, name


def test_component_names(document: dict[str, Any]) -> None:
    """Components have names that OpenAPI allows, and no trace of how they travel."""
    for group in document["components"].values():
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in group)
    assert not [name for name in document["components"]["schemas"] if name.endswith(("Wire", "Body"))]


def test_schemas_are_schemas(document: dict[str, Any]) -> None:
    """Every schema is well-formed JSON Schema 2020-12."""
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        assert schema.get("description"), f"{name} says nothing about itself"
    for _, _, operation in items(document):
        for parameter in operation.get("parameters", ()):
            jsonschema_rs.meta.validate(parameter["schema"])


def test_operation_ids(document: dict[str, Any]) -> None:
    """Operation ids are the operations' names and unique; aliases are numbered."""
    found = [operation["operationId"] for _, _, operation in items(document)]
    assert len(found) == len(set(found))
    assert OPERATIONS.keys() <= set(found)


def test_path_parameters(document: dict[str, Any]) -> None:
    """The parameters in a path are exactly those in its template."""
    for path, _, operation in items(document):
        named = re.findall(r"\{([a-z_]+)\}", path)
        given = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"]
        assert sorted(given) == sorted(named), path
        assert all(each["required"] for each in operation.get("parameters", ()) if each["in"] == "path")


def test_tags(document: dict[str, Any]) -> None:
    """Operations are grouped by concept, and each group says what it is."""
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert described == {tag for _, _, operation in items(document) for tag in operation["tags"]}


# What it says about operations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "number", "route"), ROUTES)
def test_operation(document: dict[str, Any], operation: Operation, number: int, route: Route) -> None:
    """Every route of the manifest is described: its name, statuses, refusals, and whether it takes a body."""
    item = document["paths"][route.path][route.method.lower()]
    assert item["operationId"] == (operation.name if number == 1 else f"{operation.name}:{number}")
    assert item["tags"] == [operation.concept]
    assert item["summary"] == operation.summary
    assert ("requestBody" in item) == (route.method != "GET")
    statuses = {str(operation.statuses.get(reply, 200)) for reply in operation.replies}
    assert statuses == {status for status in item["responses"] if status.startswith("2")}
    codes = codes_of(document, item)
    for refusal in operation.refuses:
        assert refusal.code in codes[str(refusal.http_status)]
    assert "unauthorized" in codes["401"] and "unavailable" in codes["503"] and "internal" in codes["500"]
    if route.method != "GET":
        assert codes["413"] == {"payload_too_large"}
        assert codes["415"] == {"unsupported_content_type"}
        assert "invalid_json" in codes["400"] and "invalid_body" in codes["422"]
    assert item["x-flowfabric"]["refuses"] == [refusal.code for refusal in operation.refuses]
    assert item["x-flowfabric"]["body_max_bytes"] == operation.body_max


@pytest.mark.parametrize(("operation", "number", "route"), ROUTES)
def test_bodies_are_closed(document: dict[str, Any], operation: Operation, number: int, route: Route) -> None:
    """A body holds no field that the path gives or the route sets, and refuses fields it does not know."""
    del number
    item = document["paths"][route.path][route.method.lower()]
    if "requestBody" not in item:
        return
    body = resolve(document, item["requestBody"]["content"]["application/json"]["schema"])
    assert body["additionalProperties"] is False
    taken = {*route.fields, *(name for name, _ in route.fixed)}
    assert not taken & body["properties"].keys()
    assert item["requestBody"]["required"] == bool(body.get("required"))


def test_refusals_name_the_status_of_their_code(document: dict[str, Any]) -> None:
    """A code stands under its own status, everywhere."""
    for path, _, operation in items(document):
        for status, codes in codes_of(document, operation).items():
            for code in codes:
                if status != "default":
                    assert str(errors.BY_CODE[code].http_status) == status, (path, code)


def test_code_table(document: dict[str, Any]) -> None:
    """The table of codes holds every code that an answer can carry, with its status and meaning."""
    table = document["x-errors"]
    named = {
        code
        for _, _, item in items(document)
        for codes in codes_of(document, item).values()
        for code in codes
    }
    assert named <= table.keys()
    for code, fact in table.items():
        kind = errors.BY_CODE[code]
        assert fact == {
            "status": kind.http_status,
            "retryable": kind.retryable,
            "message": errors.default_message(kind),
        }


def test_raw_result(document: dict[str, Any]) -> None:
    """The route that answers a result's bytes is described apart."""
    item = document["paths"]["/v1/executions/{execution_id}/result/raw"]["get"]
    assert item["operationId"] == "execution.read_result:raw"
    assert {"200", "204"} <= item["responses"].keys()
    assert codes_of(document, item)["409"] == {"execution_not_terminal", "execution_not_active"}


def test_events(document: dict[str, Any]) -> None:
    """The tail is offered as events too."""
    for path, _, item in items(document):
        offers = "text/event-stream" in resolve(document, item["responses"]["200"]).get("content", {})
        assert offers == path.endswith("/tail")
        assert offers == any(each["name"] == "Last-Event-ID" for each in item.get("parameters", ()))


def test_the_servers_own_routes(document: dict[str, Any]) -> None:
    """What the server offers beside operations is described, and what needs no token says so."""
    for endpoint in OTHER_ENDPOINTS:
        item = document["paths"].get(endpoint.path, {}).get("get")
        if item is not None:
            assert (item.get("security") == []) == endpoint.is_open
    assert {"/v1/capabilities", "/healthz", "/readyz", "/metrics"} <= document["paths"].keys()
    assert document["security"] == [{"bearer": []}, {}]


def test_payloads(document: dict[str, Any]) -> None:
    """A payload is any JSON, or bytes in base64 with their media type."""
    create = document["components"]["schemas"]["ExecutionCreate"]["properties"]
    assert "type" not in create["input"] and "exactly" in create["input"]["description"]
    assert create["input_base64"]["contentEncoding"] == "base64"
    assert create["content_type"]["type"] == "string"


def test_field_descriptions(document: dict[str, Any]) -> None:
    """What the contract says under a field is the field's description."""
    create = OPERATIONS["execution.create"].command
    said = field_docs(create)
    assert said["priority"]
    properties = document["components"]["schemas"]["ExecutionCreate"]["properties"]
    assert properties["priority"]["description"] == said["priority"]
    listing = document["paths"]["/v1/executions"]["get"]["parameters"]
    assert any(each.get("description") for each in listing)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (ids.ExecutionId, f"{{fp:0}}:{UUID}", f"{{fp:00}}:{UUID}"),
        (ids.Lane, "a.B_c:d-1", "a/b"),
        (ids.Kind, "a.B_c:d/e@f-1", "a b"),
        (ids.LeaseId, UUID, UUID.upper()),
    ],
)
def test_identifiers(kind: Any, good: str, bad: str) -> None:
    """The pattern of an identifier takes what the contract takes and refuses what it refuses."""
    check = {
        ids.ExecutionId: ids.parse_execution_id,
        ids.Lane: ids.check_lane,
        ids.Kind: lambda text: ids.check_name(text, "kind"),
        ids.LeaseId: lambda text: ids.check_uuid(text, "lease_id"),
    }[kind]
    pattern = re.compile(IDENTIFIERS[kind]["pattern"])
    for example in (good, *IDENTIFIERS[kind]["examples"]):
        assert pattern.search(example)
        check(example)
    assert not pattern.search(bad)
    with pytest.raises(errors.InvalidInput):
        check(bad)


# Whether it is true -----------------------------------------------------------------------------------------------

TRUE: Any = [
    check
    for check in CHECKS.get_all()
    if check.__name__
    in {
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    }
]
PLACES = ("waiting", "active", "ended", "missing")
EXAMPLES = 12


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server in a thread of its own, with executions in every state."""
    with served_in_thread() as found:
        yield found


def with_places(document: dict[str, Any]) -> dict[str, Any]:
    """Let generated requests name real executions, and wait only shortly."""
    copy = json.loads(json.dumps(document))
    for _, _, operation in items(copy):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "execution_id" and parameter["in"] == "path":
                parameter["schema"] = {"enum": list(PLACES)}
            elif parameter["name"] == "attempt_index":
                parameter["schema"] = {"enum": [0, 1]}
            elif parameter["name"] == "wait_ms":
                parameter["schema"] = {"enum": [0, 5, 30_001]}
    for schema in copy["components"]["schemas"].values():
        if "wait_ms" in schema.get("properties", {}):
            schema["properties"]["wait_ms"] = {"enum": [0, 5, 30_001]}
    return copy


@pytest.mark.parametrize(("operation", "number", "route"), ROUTES)
def test_answers_are_as_described(
    document: dict[str, Any], served: Served, operation: Operation, number: int, route: Route
) -> None:
    """Whatever a well-shaped request holds, the answer's status, media type and body are as described."""
    del operation, number
    schema = schemathesis.openapi.from_dict(with_places(document))
    schema.config.update(base_url=served.url)
    described = schema[route.path][route.method]
    places = served.places()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        phases=[Phase.explicit, Phase.generate],
    )
    @hypothesis.given(case=described.as_strategy())
    def answer(case: Any) -> None:
        if "execution_id" in case.path_parameters:
            case.path_parameters["execution_id"] = places[case.path_parameters["execution_id"]]
        case.call_and_validate(checks=TRUE)

    answer()


def test_answers_to_real_work(document: dict[str, Any], served: Served) -> None:
    """Every answer along an execution's life is as described."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)

    def send(operation_id: str, status: int, body: Any = None, **path: Any) -> Any:
        found = next(
            (route, method)
            for route, method, operation in items(document)
            if operation["operationId"] == operation_id
        )
        case = schema[found[0]][found[1].upper()].Case(
            path_parameters=path, **({"body": body} if body else {})
        )
        answer = case.call_and_validate(checks=TRUE)
        assert answer.status_code == status, answer.text
        return answer.json()

    lane = f"life-{served.count()}"
    created = send(
        "execution.create", 201, {"kind": "k", "lane": lane, "input": {"n": 1}, "tags": {"a.b": "c"}}
    )
    where = {"execution_id": created["execution_id"]}
    claim = {"worker_instance": "w-1", "lanes": [lane]}
    (lease,) = send("lease.claim", 200, claim, worker_id="w")["leases"]
    fence = {name: lease[name] for name in ("lease_id", "lease_epoch", "attempt_id")}
    send("lease.renew", 200, {"fence": fence}, **where)
    frames = [{"sequence": 1, "payload": {"found": 3}}, {"sequence": 2, "payload_base64": "AAEC"}]
    send("stream.append", 200, {"fence": fence, "frames": frames}, attempt_index=0, **where)
    send("execution.progress", 200, {"fence": fence, "percent": 50, "message": "half"}, **where)
    send("execution.describe", 200, **where)
    send("execution.complete", 200, {"fence": fence, "result": [1, "two", None]}, **where)
    assert send("execution.read_result", 200, **where)["result"] == [1, "two", None]
    for name in ("execution.read_info", "execution.read_context", "attempt.list", "lease.history"):
        send(name, 200, **where)
    for name in ("stream.read", "stream.tail", "attempt.describe", "stream.read_summary"):
        send(name, 200, attempt_index=0, **where)
    for name in ("stream.read:2", "stream.tail:2"):
        send(name, 200, **where)
    send("execution.replay", 200, {}, **where)
    for name in ("execution.list", "worker.list", "lane.list", "capabilities", "healthz", "readyz"):
        send(name, 200)
    path = f"/v1/executions/{quote(where['execution_id'], safe='')}/complete"
    assert served.post(path, {"fence": fence})["error"]["code"] in ("execution_not_active", "stale_lease")
