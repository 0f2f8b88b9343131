"""What a request of Triton's says of itself beside its tensors: who sent it, and how long its caller waits."""

from __future__ import annotations

import json
from typing import Any

# The gRPC header, and the request's parameter that Triton makes of it, that says who shares with whom.
CALLER = "tritonclip-caller"


def asked_by(request: Any) -> tuple[str, float]:
    """Who sent a request of Triton's, "" where nothing says so, and its timeout in seconds, 0 for none."""
    parameters = request.parameters()
    caller = str(json.loads(parameters).get(CALLER, "")) if CALLER in parameters else ""
    return caller, request.timeout() / 1e6
