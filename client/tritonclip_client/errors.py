"""The errors of the client, one tree.

    ClipError                        exit code 1
    ├── InvalidInputError            exit code 2: something given to the client is wrong
    │   └── InvalidItemError         one item is wrong; `.index` is its place in what was given
    │       ├── InvalidImageError
    │       └── InvalidTextError
    ├── ServerUnavailableError       exit code 3: not reachable, overloaded, or a model is being started again
    ├── TlsError                     exit code 3: no encrypted connection can be made; not repeated
    ├── DeadlineExceededError        exit code 4: the answer was not complete in time
    ├── ServerError                  exit code 1: the server refused or failed for another reason; `.status`
    └── ProtocolError                exit code 1: the server answered, but not as a tritonclip server does

Errors of gRPC and tritonclient become these in one place, `from_triton`.
"""

from __future__ import annotations

import re
from typing import ClassVar, Protocol

from . import tls_reasons
from .causes import Cause, cause_of, retry_after_s


class ClipError(Exception):
    """The base of every error of this package; the message says what, what is allowed and what to do.

    Attributes:
        cause: why it failed; the client repeats a request by this alone.
    """

    exit_code = 1
    cause: Cause = Cause.FINAL


class InvalidInputError(ClipError):
    """Something given to the client is wrong."""

    exit_code = 2


class InvalidItemError(InvalidInputError):
    """One item is wrong.

    Args:
        index: its place in the list that was given (for `classify`, in the labels), from 0.
        reason: what is wrong with it, what is allowed and what to do.
        source: what the user calls the item, for example its path.
    """

    kind: ClassVar[str] = "item"

    def __init__(self, index: int, reason: str, source: str | None = None) -> None:
        name = f" ({source})" if source else ""
        super().__init__(f"{self.kind}[{index}]{name}: {reason}")
        self.index = index
        self.reason = reason
        self.source = source

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call the class with the message alone.
        return type(self), (self.index, self.reason, self.source)


class InvalidImageError(InvalidItemError):
    """One image cannot be read, or is not an image that the server decodes."""

    kind = "image"


class InvalidTextError(InvalidItemError):
    """One text is not text, not UTF-8, or longer than the server takes."""

    kind = "text"


class ServerUnavailableError(ClipError):
    """The server cannot answer now, but may soon: it is not reachable, overloaded, or a model is being started again.

    Attributes:
        retry_after_s: seconds after which an overloaded server asks to come back; None where it names none.
    """

    exit_code = 3

    def __init__(self, message: str, cause: Cause = Cause.UNREACHABLE, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.cause, self.retry_after_s)


class TlsError(ClipError):
    """No encrypted connection to the server can be made: a certificate, a name, or TLS itself is wrong."""

    exit_code = 3


class DeadlineExceededError(ClipError):
    """The answer was not complete when the call's `timeout_s` was over."""

    exit_code = 4


class ServerError(ClipError):
    """The server refused or failed; `.status` is the name of the gRPC status."""

    def __init__(self, message: str, status: str = "UNKNOWN", cause: Cause = Cause.FINAL) -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.status, self.cause)


class ProtocolError(ClipError):
    """The server answered, but not as a tritonclip server does."""


class TritonFailure(Protocol):
    """The part of `tritonclient.utils.InferenceServerException` that is read here."""

    def status(self) -> str | None: ...

    def message(self) -> str | None: ...


# What a user can do about a status that has no class of its own.
_ADVICE = {
    "CANCELLED": "the call was cancelled before it was complete",
    "NOT_FOUND": "the server does not serve that model; it must serve a repository that `tritonclip export` wrote",
    "UNIMPLEMENTED": "nothing there speaks Triton's gRPC protocol; check the address",
    "RESOURCE_EXHAUSTED": "a message was too large or a quota is used up; give a smaller batch_size",
    "UNAUTHENTICATED": "the server wants credentials; give headers or tls",
    "PERMISSION_DENIED": "the server does not allow this; check headers and tls",
}
_DEFAULT_ADVICE = "the server's log says more"
_NEIGHBOUR_ADVICE = "a malformed request of another caller failed this one, again and again; see who sends them"

# What each cause says, and what to do.
_UNAVAILABLE = {
    Cause.UNREACHABLE: (
        "no server is available at {}",
        "check that it runs (`tritonclip serve DIR`) and that this is its gRPC address (port 8001 by default, not the "
        "HTTP port 8000)",
    ),
    Cause.OVERLOADED: (
        "the server at {} has more work than it can do in time",
        "send less at once, allow more time (timeout_s, --timeout), or add servers",
    ),
    Cause.REVIVING: (
        "a model of the server at {} is not running, and may be being started again",
        "ask again in a few seconds; if it stays so, the server's log says why",
    ),
}
_REFUSED = ("the server at {} refuses this client", "check tls, headers and the address")

_ITEM = re.compile(r"\b(image|text)\[(\d+)\]:\s*(.*)", re.DOTALL)
_ITEM_ERRORS: dict[str, type[InvalidItemError]] = {"image": InvalidImageError, "text": InvalidTextError}


def from_triton(failure: TritonFailure, address: str, timeout_s: float) -> ClipError:
    """The error of this package that stands for one of tritonclient.

    Args:
        failure: what tritonclient raised; its status reads `StatusCode.UNAVAILABLE`, or is None where
            tritonclient itself refused.
        address: the server that was called, for the message.
        timeout_s: the time that the whole call had, for the message.
    """
    status = (failure.status() or "UNKNOWN").rpartition(".")[2]
    details = (failure.message() or "no details").strip()
    cause = cause_of(status, details)
    if cause in _UNAVAILABLE or status == "UNAVAILABLE":
        reason = tls_reasons.refusal(details)
        if reason is not None:
            return TlsError(f"no encrypted connection to {address}: {reason} ({details})")
        return unavailable(address, details, cause)
    if cause is Cause.NEIGHBOUR:
        return ServerError(f"{status} from {address}: {details} ({_NEIGHBOUR_ADVICE})", status, cause)
    if status == "INVALID_ARGUMENT":
        return _invalid_argument(details)
    if status == "DEADLINE_EXCEEDED":
        return deadline_exceeded(timeout_s)
    return ServerError(f"{status} from {address}: {details} ({_ADVICE.get(status, _DEFAULT_ADVICE)})", status)


def unavailable(address: str, details: str, cause: Cause = Cause.UNREACHABLE) -> ServerUnavailableError:
    """The server at `address` cannot answer now; the message says why, and what to do."""
    what, advice = _UNAVAILABLE.get(cause, _REFUSED)
    hint = tls_reasons.hint(details) if cause is Cause.UNREACHABLE else ""
    return ServerUnavailableError(f"{what.format(address)} ({details}); {advice}{hint}", cause, retry_after_s(details))


def deadline_exceeded(timeout_s: float) -> DeadlineExceededError:
    """The whole call had `timeout_s` seconds."""
    return DeadlineExceededError(
        f"no complete answer within {timeout_s:g} s; allow more (timeout_s, --timeout), send fewer items in one "
        "call, or check the server's load"
    )


def _invalid_argument(details: str) -> InvalidInputError:
    item = _ITEM.search(details)
    if item is None:
        return InvalidInputError(details)
    kind, index, reason = item.groups()
    return _ITEM_ERRORS[kind](int(index), reason)
