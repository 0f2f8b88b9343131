"""Why a request failed, and with that whether a repetition helps: one table, read from the status and its message.

The messages are those of Triton 2.51, of gRPC, and of this project's own models.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple


class Cause(str, Enum):
    """Why a call failed.

    Attributes:
        FINAL: what was asked for cannot be had, or the server failed at it; the same request would fail again.
        UNREACHABLE: nothing answers at the address, the connection broke, or the server is ending or starting.
        OVERLOADED: the server refused the request before any work on it.
        REVIVING: the process of a model died, or the model is being loaded again.
        NEIGHBOUR: another caller's malformed request was in the same batch.
        STALLED: no answer came in a time in which one should have.
    """

    FINAL = "final"
    UNREACHABLE = "unreachable"
    OVERLOADED = "overloaded"
    REVIVING = "reviving"
    NEIGHBOUR = "neighbour"
    STALLED = "stalled"


class _Row(NamedTuple):
    status: str
    message: re.Pattern[str]
    cause: Cause


def _row(status: str, message: str, cause: Cause) -> _Row:
    return _Row(status, re.compile(message), cause)


# The first row that fits decides.
_TABLE: Final = (
    _row("UNAVAILABLE", r"This protocol is restricted", Cause.FINAL),
    _row("UNAVAILABLE", r"\boverloaded: ", Cause.OVERLOADED),
    # Triton's own queues: a request that waited too long, and one too many.
    _row("UNAVAILABLE", r"Request timeout expired|Exceeds maximum queue size", Cause.OVERLOADED),
    _row("UNAVAILABLE", r"has no available versions|is not ready|stopped accepting new inference", Cause.REVIVING),
    _row("UNAVAILABLE", r"", Cause.UNREACHABLE),
    # gRPC says UNKNOWN or INTERNAL where a connection ends in the middle of an answer.
    _row("UNKNOWN|INTERNAL", r"Stream removed|Socket closed|RST_STREAM|Connection reset", Cause.UNREACHABLE),
    # A server that ends cancels what runs; what this side cancels says that it was done locally.
    _row("CANCELLED", r"^CANCELLED$|RST_STREAM|Stream removed|Cancelling all calls", Cause.UNREACHABLE),
    _row("NOT_FOUND|INVALID_ARGUMENT", r"has no available versions|is not ready", Cause.REVIVING),
    _row("INTERNAL", r"Stub process .* is not healthy|is not ready|has no available versions", Cause.REVIVING),
    # What all models of a machine share is used up for the moment.
    _row("INTERNAL", r"shared memory pool", Cause.REVIVING),
    _row(
        "INVALID_ARGUMENT|INTERNAL",
        r"incomplete string (?:data|length) for inference input|unexpected number of string elements",
        Cause.NEIGHBOUR,
    ),
)

_RETRY_AFTER: Final = re.compile(r"\bretry in (\d+(?:\.\d+)?) s\b")


def cause_of(status: str, details: str) -> Cause:
    """The cause behind a gRPC status, by its name, and its message."""
    rows = (row for row in _TABLE if re.fullmatch(row.status, status) and row.message.search(details))
    return next((row.cause for row in rows), Cause.FINAL)


def retry_after_s(details: str) -> float | None:
    """Seconds after which the server asks to come back; None where it names none."""
    found = _RETRY_AFTER.search(details)
    return float(found[1]) if found else None
