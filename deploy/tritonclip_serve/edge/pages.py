"""What the metrics port answers: Triton's metrics with the supervisor's own, and whether the server can embed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_serve.edge.http import Page

T = TypeVar("T")

# What probes cost the server: a question for each model, at most five times a second.
FRESH_S = 0.2
_ASK_S = 2.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_METRICS_BYTES = 16 << 20
_UP = "tritonclip_server_up"
_EXPIRES = "tritonclip_tls_certificate_expires_seconds"
_LIVE, _READY = "/health/live", "/health/ready"


@dataclass
class Reports:
    """What the process that starts tritonserver knows beside it; each is asked whenever a page needs it.

    Attributes:
        counters: lines in Prometheus' text format.
        draining: whether the server takes no new work because it is about to end.
        unusable: models that are known to be dead or hung, and the ensembles around them, whatever tritonserver says.
    """

    counters: Callable[[], str] = lambda: ""
    draining: Callable[[], bool] = lambda: False
    unusable: Callable[[], Collection[str]] = tuple


class Pages:
    """Answers the paths.

    Args:
        metrics: host and port of tritonserver's own metrics.
        connect: makes a gRPC channel to tritonserver.
        models: the names that `/health/ready/NAME` knows.
        reports: what else is known.
        expires_at: when the server's certificate ends, in seconds since 1970; None: there is none.
    """

    def __init__(
        self,
        metrics: tuple[str, int],
        connect: Callable[[], grpc.Channel],
        models: Collection[str],
        reports: Reports,
        expires_at: float | None = None,
    ) -> None:
        self._metrics_address = metrics
        self._connect = connect
        self._reports = reports
        self._expires_at = expires_at
        self._channel: grpc.Channel | None = None
        # Counters that were read before a request would miss it.
        self._metrics = Cached(self._read_metrics, fresh_s=0)
        self._ready = {name: Cached(self._asker(name), FRESH_S) for name in ("", *models)}

    async def answer(self, path: str) -> Page:
        """The page at a path."""
        if path == "/metrics":
            return await self._metrics_page()
        if path == _LIVE:
            # The process that starts tritonserver again, and tells of it, is alive: nobody else has to.
            return Page(HTTPStatus.OK, "live\n")
        if path == _READY or path.startswith(f"{_READY}/"):
            return await self._ready_page(path.removeprefix(_READY).removeprefix("/"), path)
        return _not_found()

    def close(self) -> None:
        """Close the connection to tritonserver."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    async def _metrics_page(self) -> Page:
        told = await self._metrics.value()
        own = f"# TYPE {_UP} gauge\n{_UP} {int(told is not None)}\n"
        if self._expires_at is not None:
            own += f"# TYPE {_EXPIRES} gauge\n{_EXPIRES} {self._expires_at:.0f}\n"
        counters = self._reports.counters()
        lines = [part.rstrip("\n") + "\n" for part in (told or "", own, counters) if part]
        return Page(HTTPStatus.OK, "".join(lines), _METRICS_TYPE)

    async def _ready_page(self, name: str, path: str) -> Page:
        cached = self._ready.get(name)
        if cached is None or path.endswith("/"):
            return _not_found()
        if self._reports.draining():
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
        unusable = self._reports.unusable()
        if name in unusable or (unusable and not name):
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, "not ready\n")
        if await cached.value():
            return Page(HTTPStatus.OK, "ready\n")
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, "not ready\n")

    def _asker(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            return await asyncio.get_running_loop().run_in_executor(None, self._ask, name)

        return ask

    def _ask(self, name: str) -> bool:
        """Whether a model, or with no name the whole server, is ready; blocks."""
        try:
            channel = self._channel = self._channel or self._connect()
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            if name:
                return bool(stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=_ASK_S).ready)
            return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_ASK_S).ready)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                # Tritonserver may be started again with other certificates.
                self.close()
            return False
        except (ValueError, OSError):
            return False

    async def _read_metrics(self) -> str | None:
        """Tritonserver's own page; None where it does not answer."""
        try:
            return await asyncio.wait_for(_get(self._metrics_address), _ASK_S)
        except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            return None


class Cached(Generic[T]):
    """Asks at most once at a time, and keeps the answer for `fresh_s` seconds."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._asking: asyncio.Future[T] | None = None
        self._answered_at = 0.0

    async def value(self) -> T:
        """The answer, no older than `fresh_s`, or that of a question under way."""
        asking = self._asking
        if asking is None or (asking.done() and time.monotonic() - self._answered_at >= self._fresh_s):
            asking = self._asking = asyncio.ensure_future(self._answer())
        # A caller that goes away must not take the answer from the others.
        return await asyncio.shield(asking)

    async def _answer(self) -> T:
        answer = await self._ask()
        self._answered_at = time.monotonic()
        return answer


async def _get(address: tuple[str, int]) -> str:
    """The body of `GET /metrics`; HTTP/1.0, whose body ends with the connection.

    Raises:
        OSError, ValueError: it is not to be had.
    """
    reader, writer = await asyncio.open_connection(*address, limit=_MAX_METRICS_BYTES)
    try:
        writer.write(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = bytearray()
        while chunk := await reader.read(1 << 16):
            answer += chunk
            if len(answer) > _MAX_METRICS_BYTES:
                raise ValueError("the metrics have no end")
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise ValueError("tritonserver has no metrics")
    return body.decode("utf-8", errors="replace")


def _not_found() -> Page:
    return Page(HTTPStatus.NOT_FOUND, "/metrics, /health/live, /health/ready and /health/ready/MODEL are here\n")
