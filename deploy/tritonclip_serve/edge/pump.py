"""Carries the bytes of a decrypted connection to a port of loopback, and back."""

from __future__ import annotations

import asyncio

from tritonclip_serve.edge.listener import Connection

_CHUNK_BYTES = 64 << 10
# Longer than any answer takes.
_SILENT_S = 300.0
_CONNECT_S = 5.0


async def pump(connection: Connection, target: tuple[str, int]) -> None:
    """Carry both ways until one side ends, or nothing comes for minutes."""
    first = await asyncio.wait_for(connection.reader.read(_CHUNK_BYTES), _CONNECT_S)
    if not first:
        return
    connection.attended()
    reader, writer = await asyncio.wait_for(asyncio.open_connection(*target), _CONNECT_S)
    try:
        writer.write(first)
        # HTTP's answers are whole before either side closes: the first end is the end of both.
        ways = [
            asyncio.ensure_future(_carry(connection.reader, writer)),
            asyncio.ensure_future(_carry(reader, connection.writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    finally:
        writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await asyncio.wait_for(reader.read(_CHUNK_BYTES), _SILENT_S):
        writer.write(chunk)
        await asyncio.wait_for(writer.drain(), _SILENT_S)
