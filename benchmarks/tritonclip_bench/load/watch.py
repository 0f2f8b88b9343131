"""Notices that the server is gone, so that a run ends instead of counting refused connections."""

from __future__ import annotations

import time

import grpc
from tritonclient.grpc import service_pb2

from tritonclip_bench.server.endpoint import connect

# All requests fail for so long before the server counts as gone: one that starts again may be back by then.
PATIENCE_S = 5.0
PROBE_S = 2.0


class Watch:
    """Since when nothing but UNAVAILABLE came back.

    Attributes:
        failing_since_s: of `time.perf_counter`; None while the server answers.
    """

    def __init__(self) -> None:
        self.failing_since_s: float | None = None

    def refused(self) -> None:
        """Note that a request failed with UNAVAILABLE. What answers a request sets `failing_since_s` to None."""
        if self.failing_since_s is None:
            self.failing_since_s = time.perf_counter()


def is_live(address: str) -> bool:
    """Whether a server answers at `address`. A full one that refuses requests does, over a connection of its own."""
    channel, stub = connect(address)
    try:
        return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=PROBE_S).live)
    except grpc.RpcError as error:
        # Slow is not gone.
        return bool(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED)
    finally:
        channel.close()
