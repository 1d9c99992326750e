"""Values of user-chosen types as JSON: msgspec's types natively, pydantic models and paths by hooks.

A `TypedDecoder` is built once per annotation, at decoration time, and refuses types that JSON cannot become. pydantic
is never imported from here: a type can only be one of its models after the user's code has imported it.
"""

from __future__ import annotations

import sys
from pathlib import PurePath
from typing import Any, Final, Protocol, cast

import msgspec
from msgspec import inspect as msgspec_inspect

from flowfabric.contract.errors import Misuse


class _Model(Protocol):
    """What is used of a pydantic model."""

    def model_dump_json(self, *, by_alias: bool) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Any: ...


def _as_model(kind: Any) -> type[_Model] | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return cast("type[_Model]", kind)
    return None


def _pydantic_message(error: Any) -> str:
    """Put pydantic's list of errors on one line, each with its path."""
    return "; ".join(
        f"{'.'.join(str(part) for part in entry['loc']) or 'value'}: {entry['msg']}"
        for entry in error.errors(include_url=False, include_input=False)
    )


def _is_pydantic_error(error: Exception) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(error, pydantic.ValidationError)


def _decode_hook(kind: type, value: Any) -> Any:
    model = _as_model(kind)
    if model is not None:
        try:
            return model.model_validate_json(msgspec.json.encode(value))
        except ValueError as error:
            if _is_pydantic_error(error):
                raise ValueError(_pydantic_message(error)) from error
            raise
    if isinstance(value, str):
        return kind(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


def _encode_hook(value: Any) -> Any:
    if _as_model(type(value)) is not None:
        return msgspec.Raw(value.model_dump_json(by_alias=True).encode())
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(
        f"{type(value).__name__} has no JSON form: use builtins, a dataclass, a msgspec Struct or a pydantic model"
    )


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_encode_hook)


def encode_json(value: object) -> bytes:
    """Encode a value as JSON.

    Raises: ValueError when it has no JSON form.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error


class TypedDecoder:
    """Decodes JSON into one annotated type, strictly: a string is not a number."""

    __slots__ = ("_adapter", "_decoder")

    def __init__(self, annotation: Any, what: str) -> None:
        """Build a decoder for `annotation`; `what` names its place in messages (`argument path of task f`).

        Raises: Misuse when values of this type cannot come from JSON.
        """
        self._adapter: Any = None
        self._decoder: Any = None
        try:
            self._decoder = msgspec.json.Decoder(annotation, dec_hook=_decode_hook)
            foreign = _foreign_type(annotation)
        except (TypeError, NameError) as error:
            self._adapter = _pydantic_adapter(annotation)
            if self._adapter is None:
                raise Misuse(f"{what}: {error}") from error
            return
        if foreign is not None:
            raise Misuse(
                f"{what}: {foreign.__name__} cannot be decoded from JSON. Use builtins, a dataclass, a msgspec "
                "Struct, a TypedDict, an Enum or a pydantic model"
            )

    @property
    def is_pydantics(self) -> bool:
        """Whether only pydantic understands the type, so that it cannot be part of a larger decoder."""
        return self._adapter is not None

    def decode(self, data: bytes | msgspec.Raw) -> Any:
        """Decode, or raise ValueError with the path of the field that is wrong."""
        try:
            if self._adapter is not None:
                return self._adapter.validate_json(bytes(data))
            return self._decoder.decode(data)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        except ValueError as error:
            if _is_pydantic_error(error):
                raise ValueError(_pydantic_message(error)) from error
            raise


def _pydantic_adapter(annotation: Any) -> Any:
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return None
    try:
        return pydantic.TypeAdapter(annotation)
    except (
        pydantic.errors.PydanticUserError,
        pydantic.errors.PydanticUndefinedAnnotation,
        TypeError,
        NameError,
    ):
        return None


def _foreign_type(annotation: Any) -> type | None:
    """Return a class inside an annotation that no hook can decode, if there is one."""
    seen: set[int] = set()
    waiting: list[Any] = [msgspec_inspect.type_info(annotation)]
    kind: Any
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, msgspec_inspect.CustomType):
            kind = node.cls
            if _as_model(kind) is None and not issubclass(kind, PurePath):
                return cast("type", kind)
        waiting.extend(_children(node))
    return None


def _children(node: Any) -> list[Any]:
    """Return the type nodes directly inside a node of msgspec's description of a type."""
    found: list[Any] = []
    for name in ("item_type", "key_type", "value_type"):
        child = getattr(node, name, None)
        if child is not None:
            found.append(child)
    found.extend(getattr(node, "item_types", ()))
    found.extend(getattr(node, "types", ()))
    found.extend(field.type for field in getattr(node, "fields", ()))
    return found
