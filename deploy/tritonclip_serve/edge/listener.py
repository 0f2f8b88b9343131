"""Listens, with a bound on everything that a caller who only connects could take."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tritonclip_serve.errors import AddressError

Handler = Callable[["Connection"], Awaitable[None]]

_LOG = logging.getLogger(__name__)
# What a caller does wrong ends its own connection and is nobody else's business.
_CALLERS_FAULT = (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError)
_BACKLOG = 128
_HANDSHAKE_S = 5.0
# Where no file handle is left: connections end, and give some back.
_PAUSE_S = 0.1


@dataclass(frozen=True)
class Connection:
    """One accepted connection, decrypted.

    Attributes:
        attended: to be called once the caller has asked for something: from then on no newcomer takes the place.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    attended: Callable[[], None]


class Listener:
    """Accepts connections at one address until it is closed.

    Args:
        handler: answers one connection, and returns when it is done with it.
        limit: connections at once, handshakes included. One more takes the place of the longest that has asked for
            nothing yet, so that idle connections do not keep a health probe out.
        tls: encrypts; None: plain.
    """

    def __init__(self, address: tuple[str, int], handler: Handler, limit: int, tls: ssl.SSLContext | None) -> None:
        self._socket = _bound(address)
        self._handler = handler
        self._limit = limit
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: dict[asyncio.Task[None], None] = {}
        self._unbegun: set[socket.socket] = set()

    async def serve(self) -> None:
        """Accept until the task is cancelled; what is under way is cancelled with it."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(self._socket)
                except OSError:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._begin(accepted)
        finally:
            self.close()
            for task in self._tasks:
                task.cancel()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def _begin(self, accepted: socket.socket) -> None:
        if len(self._tasks) >= self._limit:
            if not self._idle:
                accepted.close()
                return
            oldest = next(iter(self._idle))
            self._forget(oldest)
            oldest.cancel()
        self._unbegun.add(accepted)
        task = asyncio.ensure_future(self._attend(accepted))
        self._tasks.add(task)
        self._idle[task] = None
        task.add_done_callback(self._forget)
        task.add_done_callback(lambda _: self._close_unbegun(accepted))

    def _close_unbegun(self, accepted: socket.socket) -> None:
        """A task that is cancelled before it ever ran has closed nothing."""
        if accepted in self._unbegun:
            self._unbegun.discard(accepted)
            accepted.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._idle.pop(task, None)

    async def _attend(self, accepted: socket.socket) -> None:
        self._unbegun.discard(accepted)
        try:
            connection = await self._opened(accepted)
            try:
                await self._handler(connection)
            finally:
                connection.writer.close()
        except _CALLERS_FAULT:
            pass
        except Exception:
            _LOG.exception("a connection was not answered")

    async def _opened(self, accepted: socket.socket) -> Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        limit_s = None if self._tls is None else _HANDSHAKE_S
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._tls, ssl_handshake_timeout=limit_s
            )
        except BaseException:
            accepted.close()
            raise
        task = asyncio.current_task()

        def attended() -> None:
            if task is not None:
                self._idle.pop(task, None)

        return Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), attended)


def _bound(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressError(f"{address[0]}:{address[1]} cannot be listened on ({error.strerror})") from error
    listener.setblocking(False)
    return listener
