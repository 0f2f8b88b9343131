"""Image files cut into the parts that their formats are made of, so that a mutation hits structure, not only noise."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

Parts = list[bytes]

_PNG_SIGNATURE = 8
_RIFF_HEADER = 12
_JPEG_ALONE = {0x01, *range(0xD0, 0xDA)}
_JPEG_SCAN = 0xDA


def split(image_format: str, data: bytes) -> Parts:
    """Cut `data` at the boundaries of its format; joined, the parts are `data` again.

    Args:
        image_format: one of `FORMATS`, as Pillow names them.
    """
    parts = FORMATS[image_format](data)
    return [part for part in parts if part]


def repair(image_format: str, parts: Parts) -> bytes:
    """Join `parts`, with the checksums and sizes that a decoder looks at first made right again."""
    if image_format == "PNG":
        return b"".join([parts[0], *map(_with_crc, parts[1:])])
    if image_format == "WEBP":
        body = b"".join(parts)
        return body[:4] + struct.pack("<I", max(len(body) - 8, 0)) + body[8:] if len(body) >= _RIFF_HEADER else body
    return b"".join(parts)


def _jpeg(data: bytes) -> Parts:
    parts, start = [], 0
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        length = 2 if marker in _JPEG_ALONE else 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        end = _scan_end(data, start + length) if marker == _JPEG_SCAN else start + length
        parts.append(data[start:end])
        start = end
    return [*parts, data[start:]]


def _scan_end(data: bytes, start: int) -> int:
    """Where the entropy-coded data after a scan header ends: at the next marker that is not stuffing or a restart."""
    while (start := data.find(b"\xff", start)) >= 0 and start + 1 < len(data):
        if data[start + 1] != 0 and not 0xD0 <= data[start + 1] <= 0xD7:
            return start
        start += 2
    return len(data)


def _png(data: bytes) -> Parts:
    return [data[:_PNG_SIGNATURE], *_chunks(data, _PNG_SIGNATURE, lambda head: 12 + int.from_bytes(head[:4], "big"))]


def _webp(data: bytes) -> Parts:
    def length(head: bytes) -> int:
        size = int.from_bytes(head[4:8], "little")
        return 8 + size + size % 2

    return [data[:_RIFF_HEADER], *_chunks(data, _RIFF_HEADER, length)]


def _avif(data: bytes) -> Parts:
    return _chunks(data, 0, lambda head: max(int.from_bytes(head[:4], "big"), 8))


def _chunks(data: bytes, start: int, length: Callable[[bytes], int]) -> Parts:
    parts = []
    while start < len(data):
        end = start + length(data[start : start + 8])
        parts.append(data[start:end])
        start = end
    return parts


def _gif(data: bytes) -> Parts:
    """Header, screen descriptor, palette, then one part an extension or image (cut at block terminators)."""
    palette = 3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    body = 13 + palette
    pieces = data[body:].split(b"\x00")
    return [data[:6], data[6:13], data[13:body], *(piece + b"\x00" for piece in pieces[:-1]), pieces[-1]]


def _bmp(data: bytes) -> Parts:
    header = 14 + int.from_bytes(data[14:18], "little")
    pixels = int.from_bytes(data[10:14], "little")
    return [data[:14], data[14:header], data[header:pixels], data[pixels:]]


def _tiff(data: bytes) -> Parts:
    """The header, everything before the first directory, its entries one by one, and the rest."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = [data[start + 2 + 12 * index : start + 14 + 12 * index] for index in range(count)]
    return [data[:8], data[8:start], data[start : start + 2], *entries, data[start + 2 + 12 * count :]]


def _with_crc(chunk: bytes) -> bytes:
    if len(chunk) < 12:
        return chunk
    body = chunk[4:-4]
    return struct.pack(">I", max(len(body) - 4, 0)) + body + struct.pack(">I", zlib.crc32(body))


FORMATS: dict[str, Callable[[bytes], Parts]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "AVIF": _avif,
}
