"""Definitions of executions as documents: MessagePack, for stores that keep what only readers need in one piece.

The instant of creation is not part of the document, because only the store knows it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import ExecutionDefinition

_DEFINITION: Final = msgspec.msgpack.Decoder(ExecutionDefinition)


def encode_definition(definition: ExecutionDefinition) -> bytes:
    """Encode a definition; its `created_at_ms` is kept elsewhere and is 0 here."""
    return msgspec.msgpack.encode(definition)


def decode_definition(document: bytes, created_at_ms: int) -> ExecutionDefinition:
    """Decode a definition that was created at an instant."""
    try:
        return msgspec.structs.replace(_DEFINITION.decode(document), created_at_ms=created_at_ms)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a stored definition cannot be read: {error}") from error
