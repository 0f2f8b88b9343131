"""A request of Triton's beside its tensors: who sent it, how long its caller waits, and how it is answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils
from clip_fair import OverloadError

# The gRPC header, and the request's parameter that Triton makes of it, that says who shares with whom.
CALLER = "tritonclip-caller"


def asked_by(request: Any) -> tuple[str, float]:
    """Who sent a request, "" where nothing says so, and its timeout in seconds, 0 for none."""
    parameters = request.parameters()
    caller = json.loads(parameters).get(CALLER, "") if CALLER in parameters else ""
    return str(caller), request.timeout() / 1e6


class Reply:
    """Answers one request: what is known before `execute` returns goes back with it, the rest when it is there.

    The first costs a message between the processes less, and no answer overtakes the end of `execute`.

    Args:
        request: may be answered once.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._sender: Any = None
        self._response: Any = None

    def send(self, response: Any) -> None:
        """Answer; from any thread."""
        with self._lock:
            if self._sender is None:
                self._response = response
                return
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def now(self) -> Any:
        """The response if it is there, else None, and it will be sent; called once, by `execute` at its end."""
        with self._lock:
            request, self._request = self._request, None
            if self._response is None:
                self._sender = request.get_response_sender()
            return self._response


def ended(replies: Sequence[Reply]) -> list[Any] | None:
    """What `execute` has to return."""
    responses = [reply.now() for reply in replies]
    return responses if any(response is not None for response in responses) else None


def failure(error: Exception, what: str, *, invalid: tuple[type[Exception], ...] = ()) -> Any:
    """The response that says why a request was not served.

    Args:
        what: failed, if it is nobody's fault.
        invalid: errors whose message tells the caller what is wrong with the request.
    """
    if isinstance(error, OverloadError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
    if isinstance(error, invalid):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
    message = f"{what} failed: {error!r}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))
