"""Commands, and how they are written on the wire.

Encoding is `hiredis.pack_command`: on the calls the engine makes it takes a third to a half of the time of a Python
join. A command whose answer does not come back in order (subscriptions, MONITOR, CLIENT REPLY) must not be sent
through `encode`d groups; the connection is dropped when one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

from flowfabric.contract.errors import Misuse

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

# Its stub promises a tuple of one element and no result.
_pack: Final = cast("Callable[[Command], bytes]", cast("Any", hiredis).pack_command)

ASKING: Final[Command] = ("ASKING",)


def encode(commands: Sequence[Command]) -> bytes:
    """Return the bytes of these commands, in order.

    Raises: Misuse for no command, an empty one, or an argument that is not bytes, text, an integer or a float.
    """
    try:
        if len(commands) == 1:
            command = commands[0]
            if not command:
                raise Misuse("a command needs at least its name")
            return _pack(command)
        if not commands or not all(commands):
            raise Misuse("a group needs at least one command, and a command at least its name")
        return b"".join([_pack(command) for command in commands])
    except (TypeError, UnicodeEncodeError) as error:
        raise Misuse(f"a command's arguments are bytes, str, int or float in a tuple: {error}") from error


def encode_asking(commands: Sequence[Command]) -> bytes:
    """Return these commands, each after an ASKING: two replies come back for each."""
    interleaved: list[Command] = []
    for command in commands:
        interleaved += (ASKING, command)
    return encode(interleaved)
