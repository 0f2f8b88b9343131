"""The errors of the client, one tree.

    ClipError                        exit code 1
    ├── InvalidInputError            exit code 2: something given to the client is wrong
    │   └── InvalidItemError         one item is wrong; `.index` is its place in what was given
    │       ├── InvalidImageError
    │       └── InvalidTextError
    ├── ServerUnavailableError       exit code 3: nothing answers at the address, or the server cannot take more
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


class ClipError(Exception):
    """The base of every error of this package; the message says what, what is allowed and what to do."""

    exit_code = 1


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
    """One image cannot be read, or is not a picture that the server decodes."""

    kind = "image"


class InvalidTextError(InvalidItemError):
    """One text is not text, not UTF-8, or longer than the server takes."""

    kind = "text"


class ServerUnavailableError(ClipError):
    """Nothing answers at the address, or the server cannot take more now; the only error that is retried."""

    exit_code = 3


class TlsError(ClipError):
    """No encrypted connection to the server can be made: a certificate, a name, or TLS itself is wrong."""

    exit_code = 3


class DeadlineExceededError(ClipError):
    """The answer was not complete when the call's `timeout_s` was over."""

    exit_code = 4


class ServerError(ClipError):
    """The server refused or failed; `.status` is the name of the gRPC status."""

    def __init__(self, message: str, status: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.status = status


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
    if status == "INVALID_ARGUMENT":
        return _invalid_argument(details)
    if status == "UNAVAILABLE":
        reason = tls_reasons.refusal(details)
        if reason is not None:
            return TlsError(f"no encrypted connection to {address}: {reason} ({details})")
        return unavailable(address, details)
    if status == "DEADLINE_EXCEEDED":
        return deadline_exceeded(timeout_s)
    return ServerError(f"{status} from {address}: {details} ({_ADVICE.get(status, _DEFAULT_ADVICE)})", status)


def unavailable(address: str, details: str) -> ServerUnavailableError:
    """Nothing useful answers at `address`."""
    return ServerUnavailableError(
        f"no server is available at {address} ({details}); check that it runs (`tritonclip serve DIR`) and that "
        f"this is its gRPC address (port 8001 by default){tls_reasons.hint(details)}"
    )


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
