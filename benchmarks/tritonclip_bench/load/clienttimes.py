"""What a request costs the load generator itself: means of what it measures beside the requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# gRPC serialises a message inside the timed call; one of so many is serialised once more, outside it, to know the cost.
SAMPLED_OF = 50


@dataclass
class ClientTimes:
    """Sums over the requests of a window.

    Attributes:
        requests: whose message was made.
        prepare_s, check_s: making messages, and checking answers.
        sampled: messages that were serialised once more; serialise_s, sent_bytes: of those.
    """

    requests: int = 0
    prepare_s: float = 0.0
    check_s: float = 0.0
    sampled: int = 0
    serialise_s: float = 0.0
    sent_bytes: int = 0

    def clear(self) -> None:
        """Begin anew."""
        for name, default in asdict(ClientTimes()).items():
            setattr(self, name, default)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the sums of another process, of `dataclasses.asdict`."""
        for name, value in other.items():
            setattr(self, name, getattr(self, name) + value)

    def count(self, prepare_s: float, check_s: float, message: Any) -> None:
        """Note a request whose time is over, and now and then what serialising its protobuf message takes."""
        self.requests += 1
        self.prepare_s += prepare_s
        self.check_s += check_s
        if self.requests % SAMPLED_OF == 1:
            begin_s = time.perf_counter()
            content = message.SerializeToString()
            self.serialise_s += time.perf_counter() - begin_s
            self.sampled += 1
            self.sent_bytes += len(content)

    def summary(self) -> dict[str, float]:
        """Means per request, for JSON; empty where there was none."""
        if not self.requests:
            return {}
        return {
            "prepare_ms": self.prepare_s / self.requests * 1000,
            "serialise_ms": self.serialise_s / self.sampled * 1000,
            "check_ms": self.check_s / self.requests * 1000,
            "request_bytes": self.sent_bytes / self.sampled,
        }
