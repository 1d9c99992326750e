"""What an error of the server or the driver means for the call that met it.

Three questions are answered here and nowhere else: was anything done, may the same statement be sent again, and what is
the caller told. What must stay true: "nothing was executed" is only said when the server said so or was never asked;
a connection that went away after a statement was sent leaves the outcome unknown.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import asyncpg  # pyright: ignore[reportMissingTypeStubs] -- it comes without
import msgspec

from flowfabric.contract.errors import (
    Corrupt,
    FlowFabricError,
    InvalidInput,
    Misuse,
    OutcomeUnknown,
    Unavailable,
)


class Verdict(Enum):
    """What became of a statement that ended in an error."""

    AGAIN = auto()
    """It was rolled back, or never executed: the same statement may be sent again at once."""
    ELSEWHERE = auto()
    """It was not executed, and this connection is no good: send it on another one."""
    LOST = auto()
    """It may have been executed."""
    OUT_OF_TIME = auto()
    """It was rolled back, because it took too long."""
    REFUSED = auto()
    """It was rolled back, and sending it again would end the same way."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One error, understood."""

    verdict: Verdict
    reason: str
    told: FlowFabricError | None = None
    """What the caller is told when it is REFUSED."""


_AGAIN: Final = frozenset({"40001", "40P01", "40000", "40002"})
"""Serialization failures and deadlocks."""
_ELSEWHERE: Final = frozenset(
    {
        "57P01",  # the connection was terminated, or the server is shutting down
        "57P03",  # the server is starting up, or recovering
        "53300",  # too many connections
        "25006",  # a primary that has become a standby
        "57P04",  # the database was dropped
        "57P05",  # idle for too long
        "25P03",  # a transaction was left open for too long
    }
)
_OUT_OF_TIME: Final = frozenset({"57014", "55P03"})
"""The statement's time, or its patience for a lock, ran out; it was rolled back."""
_UNKNOWN: Final = frozenset({"40003", "57P02", "08007"})
_FULL: Final = frozenset({"53000", "53100", "53200", "53400", "54000"})
_RIGHTS: Final = frozenset({"42501", "28000", "28P01", "3D000"})
_VALUE: Final = frozenset({"22000", "22021", "22P05"})
"""A value the driver could not encode, or text that the server cannot keep."""
_STALE: Final = frozenset({"42883", "42P01", "42703", "42804"})
"""What a statement meets whose functions were replaced by another version."""
_PREPARED: Final = frozenset({"26000", "42P05"})
"""What a prepared statement meets behind a proxy that gives it another server's connection each time."""
_CONNECTION: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError among them: the deadline passed while the server was silent
    EOFError,
)
UNREADABLE_URL: Final = (
    "the URL's host, port or options cannot be read; what is special in a user or password is written as in "
    "%2F for /, %40 for @ and %5B for ["
)
_NOT_BEGUN: Final = "cannot switch to state"
"""What the driver says, before it sends anything, of a connection that the server has just ended."""


def understand(error: BaseException, *, sent: bool) -> Trouble:
    """Say what an error means; `sent`: the statement may have reached the server when it happened."""
    state = sqlstate_of(error)
    reason = _reason(error)
    if isinstance(error, asyncpg.exceptions.InvalidCachedStatementError):
        return Trouble(verdict=Verdict.AGAIN, reason=reason)
    if state is not None:
        trouble = _of_state(state, reason)
        if trouble.verdict is Verdict.LOST and not sent:
            return Trouble(verdict=Verdict.ELSEWHERE, reason=reason)
        return trouble
    if isinstance(error, (ValueError, TypeError, OverflowError)):
        # The driver could not encode an argument: nothing was sent.
        told = InvalidInput(f"the store cannot keep this value: {reason}")
        return Trouble(verdict=Verdict.REFUSED, reason=reason, told=told)
    if isinstance(error, asyncpg.InternalClientError) and str(error).startswith(_NOT_BEGUN):
        return Trouble(verdict=Verdict.ELSEWHERE, reason=reason)
    if isinstance(error, _CONNECTION):
        return Trouble(verdict=Verdict.LOST if sent else Verdict.ELSEWHERE, reason=reason)
    return Trouble(
        verdict=Verdict.REFUSED, reason=reason, told=Corrupt(f"the store's driver failed: {reason}")
    )


def sqlstate_of(error: BaseException) -> str | None:
    """Return the code the server gave, also when it closed the connection after saying so."""
    for found in (error, error.__cause__):
        if isinstance(found, asyncpg.PostgresError) and not isinstance(
            found, asyncpg.exceptions.ConnectionDoesNotExistError
        ):
            return getattr(found, "sqlstate", None)
    return None


def is_forbidden(error: BaseException) -> bool:
    """Say whether this role lacks the right."""
    return sqlstate_of(error) == "42501"


def is_other_signature(error: BaseException) -> bool:
    """Say whether a function cannot be replaced because its parameters or what it returns are others."""
    return sqlstate_of(error) == "42P13"


def is_other_result(error: BaseException) -> bool:
    """Say whether a prepared statement returns something else than when it was prepared."""
    return isinstance(error, (asyncpg.FeatureNotSupportedError, asyncpg.InternalClientError))


def _of_state(state: str, reason: str) -> Trouble:
    if state in _AGAIN:
        return Trouble(verdict=Verdict.AGAIN, reason=reason)
    if state in _ELSEWHERE:
        return Trouble(verdict=Verdict.ELSEWHERE, reason=reason)
    if state in _OUT_OF_TIME:
        return Trouble(verdict=Verdict.OUT_OF_TIME, reason=reason)
    if state in _UNKNOWN:
        return Trouble(verdict=Verdict.LOST, reason=reason)
    told: FlowFabricError
    if state in _FULL:
        told = Unavailable(f"the store has no room or memory left: {reason}")
    elif state in _RIGHTS:
        told = Unavailable(f"the store refuses this user: {reason}")
    elif state in _VALUE:
        told = InvalidInput(f"the store cannot keep this value: {reason}")
    elif state in _STALE:
        told = Unavailable(
            f"the store's functions are those of another version of FlowFabric ({reason}): restart with that version"
        )
    elif state in _PREPARED:
        told = Unavailable(
            f"prepared statements get lost on the way ({reason}): behind a proxy that pools transactions, add "
            "?pooler=transaction to the store's URL"
        )
    elif state[:2] == "08":
        return Trouble(verdict=Verdict.LOST, reason=reason)
    elif state[:2] == "57":
        return Trouble(verdict=Verdict.ELSEWHERE, reason=reason)
    else:
        told = Corrupt(f"the store answered with an error: {state} {reason}")
    return Trouble(verdict=Verdict.REFUSED, reason=reason, told=told)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "the server did not answer in time"
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:500]


def gave_up(trouble: Trouble, *, changes: bool, doubtful: bool = False) -> FlowFabricError:
    """Build the error for a call that ends with this trouble.

    `changes`: it would have changed something. `doubtful`: an earlier sending of it may have been executed.
    """
    if trouble.verdict is Verdict.REFUSED and not doubtful:
        return trouble.told or Corrupt(trouble.reason)
    if changes and (doubtful or trouble.verdict is Verdict.LOST):
        return OutcomeUnknown(f"{trouble.reason}; the call had been sent")
    if trouble.verdict is Verdict.OUT_OF_TIME:
        return Unavailable(
            f"the store is too busy with what this call needs ({trouble.reason}); nothing was executed"
        )
    return Unavailable(f"{trouble.reason}; nothing was executed" if changes else trouble.reason)


def refused_at_opening(error: BaseException, address: str) -> FlowFabricError:
    """Build the error for a server that does not let us in."""
    state = sqlstate_of(error)
    reason = _reason(error)
    if state in ("28000", "28P01"):
        return Misuse(f"{address} refuses this user: {reason}")
    if state == "3D000":
        return Misuse(f"{address} has no such database: {reason}; create it first (createdb)")
    if state == "42501":
        return Misuse(f"{address} refuses this user: {reason}")
    # An option that is not the driver's is a setting of the server, which may not know it or not take its value.
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError) or state in ("42704", "22023"):
        return Misuse(f"the URL cannot be used: {reason}")
    if state is None and isinstance(error, ValueError):
        # What cannot be read may be a part of the password.
        return Misuse(UNREADABLE_URL)
    trouble = understand(error, sent=False)
    if state is not None and trouble.told is not None:
        return trouble.told
    return Unavailable(f"{address} cannot be reached: {reason}")
