"""A handler's annotations type its input and result, strictly and with errors that name the field."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from flowfabric.contract.errors import Misuse
from flowfabric.contract.limits import PAYLOAD_BYTES_MAX
from flowfabric.contract.payloads import Payload
from flowfabric.worker.context import Context, SyncContext
from flowfabric.worker.errors import InputError, ResultError
from flowfabric.worker.signature import Signature


@dataclass
class Point:
    x: int
    y: int = 0


class Box(msgspec.Struct):
    corner: Point
    label: str | None = None


class Options(TypedDict):
    depth: int


class Colour(Enum):
    RED = "red"


class Customer(pydantic.BaseModel):
    name: str
    since: datetime
    rank: int = pydantic.Field(default=1, ge=1, alias="rang")


class Foreign:
    pass


def decode(function: Any, data: bytes, content_type: str = "application/json") -> dict[str, Any]:
    return Signature(function, "it").decode(Payload(data, content_type))


async def everything(
    ctx: Context,
    point: Point,
    box: Box,
    options: Options,
    colour: Colour,
    when: datetime,
    where: Path,
    words: list[str],
    table: dict[str, tuple[int, float]],
    either: int | str,
    mode: Literal["a", "b"] = "a",
    anything: Any = None,
) -> list[Box]:
    return [box]


def test_arguments_round_trip_through_every_kind_of_type() -> None:
    """Dataclasses, structs, typed dicts, enums, instants, paths, containers and unions come back as they went."""
    signature = Signature(everything, "everything")
    arguments: dict[str, Any] = {
        "point": Point(1, 2),
        "box": Box(Point(3)),
        "options": Options(depth=3),
        "colour": Colour.RED,
        "when": datetime(2024, 5, 6, tzinfo=UTC),
        "where": Path("/tmp/x"),
        "words": ["a", "b"],
        "table": {"k": (1, 2.5)},
        "either": "s",
    }
    assert signature.wants_context
    assert signature.decode(signature.encode_arguments(arguments)) == arguments


def test_defaults_are_the_functions_own() -> None:
    """An argument that is not sent is not passed, so the function's own default applies."""

    def greet(name: str, punctuation: str = "!") -> None: ...

    assert decode(greet, b'{"name":"a"}') == {"name": "a"}


def test_no_input_means_no_arguments() -> None:
    """An execution created without an input calls its handler without arguments."""

    def nothing() -> None: ...

    assert decode(nothing, b"null") == {}
    assert decode(nothing, b"{}") == {}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b'{"point":{"x":"1"}}', "`$.point.x`"),
        (b'{"point":{}}', "missing required field `x`"),
        (b"{}", "missing required field `point`"),
        (b'{"point":{"x":1},"more":1}', "unknown field `more`"),
        (b"[1]", "Expected `object`"),
        (b'{"point":', "truncated"),
        (b'{"point":{"x":\xff}}', ""),
    ],
)
def test_input_that_does_not_fit_is_refused_by_field(data: bytes, part: str) -> None:
    """Input that is missing, unknown, of the wrong type or no JSON is refused, naming where."""

    def move(point: Point) -> None: ...

    with pytest.raises(InputError) as caught:
        decode(move, data)
    assert part in str(caught.value)


def test_numbers_are_not_taken_from_strings() -> None:
    """Decoding is strict: "1" is not 1."""

    def count(n: int) -> None: ...

    with pytest.raises(InputError, match=r"Expected `int`, got `str` - at `\$.n`"):
        decode(count, b'{"n":"1"}')


def test_extra_arguments_go_to_keywords() -> None:
    """A function with **extra takes arguments it does not name, typed by its annotation."""

    def collect(first: int, **extra: int) -> None: ...

    assert decode(collect, b'{"first":1,"b":2,"c":3}') == {"first": 1, "b": 2, "c": 3}
    with pytest.raises(InputError, match="argument `b`"):
        decode(collect, b'{"first":1,"b":"x"}')


def test_one_bytes_argument_is_taken_raw() -> None:
    """A single bytes argument takes a payload of any other media type as it is."""

    def store(data: bytes) -> bytes:
        return data

    signature = Signature(store, "store")
    assert decode(store, b"\x00\xff", "image/png") == {"data": b"\x00\xff"}
    sent = signature.encode_arguments({"data": b"\x00\xff"})
    assert sent == Payload(b"\x00\xff", "application/octet-stream")
    assert signature.encode_result(b"\x01") == Payload(b"\x01", "application/octet-stream")
    assert signature.decode_result(Payload(b"\x01", "application/octet-stream")) == b"\x01"


def test_other_media_types_are_refused() -> None:
    """A task that takes a JSON object refuses an input of another media type."""

    def count(n: int) -> None: ...

    with pytest.raises(InputError, match="image/png"):
        decode(count, b"x", "image/png")


def test_pydantic_models_are_decoded_also_inside_containers() -> None:
    """pydantic models are validated with their own rules and aliases, wherever they are."""

    def invite(guests: list[Customer]) -> dict[str, Customer]:
        return {guest.name: guest for guest in guests}

    signature = Signature(invite, "invite")
    guest = Customer(name="Ada", since=datetime(1843, 1, 1, tzinfo=UTC), rang=2)
    found = signature.decode(signature.encode_arguments({"guests": [guest]}))
    assert found == {"guests": [guest]}
    result = signature.encode_result(invite(**found))
    assert result is not None
    assert signature.decode_result(result) == {"Ada": guest}
    with pytest.raises(InputError, match=r"rang: Input should be greater.*\$\.guests\[0\]"):
        signature.decode(Payload(b'{"guests":[{"name":"x","since":"2020-01-01","rang":0}]}'))


def test_unions_of_pydantic_models_are_decoded() -> None:
    """A union that only pydantic understands is decoded by pydantic."""

    class Cat(pydantic.BaseModel):
        lives: int

    class Dog(pydantic.BaseModel):
        tricks: list[str]

    def adopt(pet: Cat | Dog) -> None: ...

    signature = Signature(adopt, "adopt", {"Cat": Cat, "Dog": Dog})
    assert signature.decode(Payload(b'{"pet":{"tricks":["sit"]}}')) == {"pet": Dog(tricks=["sit"])}
    with pytest.raises(InputError, match="pet"):
        signature.decode(Payload(b'{"pet":{}}'))


def test_arguments_are_checked_before_they_are_sent() -> None:
    """Missing, unknown, mistyped and unencodable arguments are the caller's error, by name."""

    def move(point: Point, fast: bool = False) -> None: ...

    signature = Signature(move, "move")
    with pytest.raises(Misuse, match="needs point"):
        signature.encode_arguments({})
    with pytest.raises(Misuse, match=r"no argument slow.*takes point, fast"):
        signature.encode_arguments({"point": Point(1), "slow": 1})
    with pytest.raises(Misuse, match=r"\$.fast"):
        signature.encode_arguments({"point": Point(1), "fast": "yes"})
    with pytest.raises(Misuse, match="object"):
        signature.encode_arguments({"point": object()})


def test_results_that_cannot_be_stored_are_refused() -> None:
    """A result without a JSON form, or larger than the bound, is refused; one exactly at the bound is stored."""

    def work() -> Any: ...

    signature = Signature(work, "work")
    with pytest.raises(ResultError, match="object"):
        signature.encode_result(object())
    with pytest.raises(ResultError, match="more than"):
        signature.encode_result(b"x" * (PAYLOAD_BYTES_MAX + 1))
    assert signature.encode_result(b"x" * PAYLOAD_BYTES_MAX) is not None
    assert signature.encode_result(None) is None
    with pytest.raises(ResultError, match="stored result"):
        Signature(everything, "everything").decode_result(Payload(b'"no"'))


def test_signatures_that_cannot_work_are_refused() -> None:
    """Parameters that input cannot name, generators, foreign types and unknown annotations are refused at once."""

    def positional(a: int, /) -> None: ...

    def star(*args: int) -> None: ...

    def generator() -> Any:
        yield 1

    def foreign(thing: Foreign) -> None: ...

    def deep(things: list[dict[str, Foreign]]) -> None: ...

    def late(a: int, ctx: Context) -> None: ...

    def unknown(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    function: Any
    for function, part in (
        (positional, "cannot be given by name"),
        (star, "cannot be given by name"),
        (generator, "generator"),
        (foreign, "Foreign cannot be decoded"),
        (deep, "Foreign cannot be decoded"),
        (late, "must be the first parameter"),
        (unknown, "'Missing' cannot be resolved"),
        (Foreign(), "is a Foreign"),
    ):
        with pytest.raises(Misuse, match=part):
            Signature(function, "it")


def test_the_context_is_recognised_by_annotation_or_name() -> None:
    """The first parameter is the context when annotated so, or when it is called ctx without an annotation."""

    def by_type(c: SyncContext, n: int) -> None: ...

    def by_name(ctx, n: int) -> None: ...  # type: ignore[no-untyped-def]

    def plain(ctx: int) -> None: ...

    assert Signature(by_type, "it").wants_context
    assert Signature(by_name, "it").wants_context
    assert not Signature(plain, "it").wants_context
