"""Answers one GET or HEAD a connection, and closes it: HTTP/1.1 as h11 reads it, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11

from tritonclip_serve.edge.listener import Connection

MAX_HEAD_BYTES = 8 << 10
_HEAD_S = 5.0
_ANSWER_S = 10.0
_READ_BYTES = 4 << 10
_METHODS = (b"GET", b"HEAD")
_ALLOW = ("Allow", "GET, HEAD")
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Page:
    """What is answered: a status, its text, and the text's type."""

    status: HTTPStatus
    body: str
    content_type: str = TEXT


Answer = Callable[[str], Awaitable[Page]]


async def serve_page(connection: Connection, answer: Answer) -> None:
    """Read the head of one request, answer it, and be done with the connection.

    Args:
        answer: called with the path, without the query.
    """
    protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    try:
        request = await asyncio.wait_for(_head(connection.reader, protocol), _HEAD_S)
    except h11.RemoteProtocolError as error:
        status = HTTPStatus(error.error_status_hint)
        await _send(connection, protocol, Page(status, f"{status.phrase}\n"))
        return
    if request is None:
        return
    connection.attended()
    if request.method not in _METHODS:
        page = Page(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD are answered here\n")
    else:
        page = await answer(request.target.split(b"?", 1)[0].decode("ascii"))
    await _send(connection, protocol, page, with_body=request.method != b"HEAD")


async def _head(reader: asyncio.StreamReader, protocol: h11.Connection) -> h11.Request | None:
    """The first request; None where the caller went away."""
    while True:
        event = protocol.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        protocol.receive_data(await reader.read(_READ_BYTES))


async def _send(connection: Connection, protocol: h11.Connection, page: Page, with_body: bool = True) -> None:
    body = page.body.encode()
    headers = [
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(_ALLOW)
    sent = protocol.send(h11.Response(status_code=page.status, headers=headers, reason=page.status.phrase)) or b""
    if with_body:
        sent += protocol.send(h11.Data(data=body)) or b""
    connection.writer.write(sent)
    await asyncio.wait_for(connection.writer.drain(), _ANSWER_S)
