"""The public metrics port, and HTTP inference under TLS: an event loop in a thread of the process that serves."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Collection
from contextlib import suppress

from tritonclip_serve.edge.access import Access
from tritonclip_serve.edge.endpoints import LOOPBACK, Endpoints
from tritonclip_serve.edge.http import serve_page
from tritonclip_serve.edge.listener import Connection, Listener
from tritonclip_serve.edge.pages import Pages, Reports
from tritonclip_serve.edge.pump import pump
from tritonclip_serve.edge.tls import ServerTls

MAX_PAGE_CONNECTIONS = 64
MAX_HTTP_CONNECTIONS = 512
_STOP_S = 5.0


class Edge:
    """Serves from `start` to `stop`.

    Args:
        pages: what the metrics port answers.
        metrics: host and port to listen on.
        http: public address of HTTP inference, and the port of loopback behind it; None: there is none.
        tls: encrypts both; None: plain.
    """

    def __init__(
        self,
        pages: Pages,
        metrics: tuple[str, int],
        http: tuple[tuple[str, int], tuple[str, int]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._pages = pages
        self._metrics = metrics
        self._http = http
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._serving: asyncio.Future[list[None]] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen; returns at once.

        Raises:
            AddressError: an address cannot be listened on.
        """
        listeners = [Listener(self._metrics, self._answer, MAX_PAGE_CONNECTIONS, self._tls)]
        try:
            if self._http is not None:
                public, inner = self._http

                def carry(connection: Connection) -> Awaitable[None]:
                    return pump(connection, inner)

                listeners.append(Listener(public, carry, MAX_HTTP_CONNECTIONS, self._tls))
        except BaseException:
            listeners[0].close()
            raise
        self._thread = threading.Thread(target=self._run, args=(listeners,), name="edge", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and end what is under way; does nothing where nothing runs."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)
        thread.join(_STOP_S)
        self._pages.close()

    def _answer(self, connection: Connection) -> Awaitable[None]:
        return serve_page(connection, self._pages.answer)

    def _cancel(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    def _run(self, listeners: list[Listener]) -> None:
        async def serve() -> None:
            serving = self._serving = asyncio.gather(*(listener.serve() for listener in listeners))
            with suppress(asyncio.CancelledError):
                await serving

        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(serve())
        finally:
            _end(self._loop)


def start_edge(
    ends: Endpoints, tls: ServerTls | None, access: Access, models: Collection[str], reports: Reports
) -> Edge:
    """An edge that serves: in front of a tritonserver at `ends`, which need not run yet.

    Raises:
        AddressError: an address cannot be listened on.
    """
    pages = Pages(
        metrics=(LOOPBACK, ends.inner_metrics),
        connect=lambda: access.channel(ends.address("grpc")),
        models=models,
        reports=reports,
        expires_at=None if tls is None else tls.expires_at(),
    )
    http = None
    if ends.http is not None and ends.inner_http is not None:
        http = ((ends.host, ends.http), (LOOPBACK, ends.inner_http))
    edge = Edge(pages, (ends.host, ends.metrics), http, None if tls is None else tls.server_context())
    edge.start()
    return edge


def _end(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
