"""Small files that cost a decoder much: time, memory, or both. Each is made in well under a second or two."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence

from PIL import Image, features

# Width and height of 88 megapixels, just within the limit.
SIDE = 9400
_MEBI = 1 << 20


def jpeg_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG without content whose `scans` all run over all its blocks, 15 bits for 32,767 of them."""
    blocks = (-(-side // 8)) ** 2
    frame = struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)
    one_symbol = bytes([1]) + bytes(15)
    tables = bytes([0x00]) + one_symbol + bytes([0x00]) + bytes([0x10]) + one_symbol + bytes([0xE0])
    parts = [b"\xff\xd8", _segment(0xDB, b"\x00" + b"\x01" * 64), _segment(0xC2, frame), _segment(0xC4, tables)]
    parts += [_scan(0, 0, 0, 0), _bits("0" * blocks)]
    run = _bits(("0" + "1" * 14) * -(-blocks // 32767))
    steps = [(k, high) for high in range(13, -1, -1) for k in range(1, 64)]
    for number in range(scans - 1):
        k, low = steps[number % len(steps)]
        parts += [_scan(k, k, 0 if low == 13 else low + 1, low), run]
    return b"".join([*parts, b"\xff\xd9"])


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _scan(first: int, last: int, high: int, low: int) -> bytes:
    return _segment(0xDA, bytes([1, 1, 0, first, last, high << 4 | low]))


def _bits(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def jpeg_segments(count: int) -> bytes:
    """A good JPEG with `count` empty comments before its header."""
    good = small("JPEG")
    return good[:2] + b"\xff\xfe\x00\x02" * count + good[2:]


def bmp_rle(width: int, height: int) -> bytes:
    """A run-length encoded BMP of a pixel a row; the rest of each row is to be filled in."""
    content = b"\x01\x00\x00\x00" * height
    begin = 14 + 40 + 1024
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(content), 0, 0, begin) + info + bytes(1024) + content


def png(width: int, height: int, *, color: int = 2) -> bytes:
    """A black PNG; `color` 0 is grey, 2 is RGB, 6 is RGBA."""
    rows = height * (1 + width * {0: 1, 2: 3, 6: 4}[color])
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zeros(rows)) + _chunk(b"IEND", b"")


def png_chunks(count: int) -> bytes:
    """A good PNG with `count` empty chunks before its pixels."""
    good = small("PNG")
    return good[:33] + _chunk(b"aaAa", b"") * count + good[33:]


def png_text(mebibytes: int) -> bytes:
    """A good PNG whose text unpacks to so many MiB, in pieces of 1."""
    good = small("PNG")
    return good[:33] + _chunk(b"zTXt", b"key\x00\x00" + zeros(_MEBI - 8)) * mebibytes + good[33:]


_PNG = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def zeros(count: int) -> bytes:
    """A zlib stream of `count` bytes 0, made in time of a thousandth of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(_MEBI)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = rest.compress(bytes(count % _MEBI)) + rest.flush()
    # Adler-32 of n bytes 0: both sums start at 1 and 0, and the second grows by 1 a byte.
    return b"\x78\xda" + block * (count // _MEBI) + end + struct.pack(">I", (count % 65521) << 16 | 1)


def tiff(tags: Sequence[tuple[int, str, Sequence[int]]], content: bytes = b"", after: bytes = b"") -> bytes:
    """A little-endian TIFF of `tags`: number, "H" or "I", values. Its data begins at byte 8; `after` ends the file."""
    entries, extra = [], bytearray()
    start = 8 + len(content) + 2 + 12 * len(tags) + 4
    for number, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        head = struct.pack("<HHI", number, 3 if kind == "H" else 4, len(values))
        if len(packed) <= 4:
            entries.append(head + packed.ljust(4, b"\x00"))
        else:
            entries.append(head + struct.pack("<I", start + len(extra)))
            extra += packed
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\x00" + struct.pack("<I", 8 + len(content)) + content + directory + bytes(extra) + after


_GREY = [(256, "I", [16]), (257, "I", [16]), (258, "H", [8]), (262, "H", [1])]


def tiff_tile(side: int) -> bytes:
    """16 x 16 pixels in one tile of `side` x `side`."""
    data = zeros(side * side)
    return tiff(
        [
            *_GREY[:3],
            (259, "H", [8]),
            _GREY[3],
            *((322, "I", [side]), (323, "I", [side]), (324, "I", [8]), (325, "I", [len(data)])),
        ],
        data,
    )


def tiff_strips(count: int) -> bytes:
    """16 x 16 pixels with `count` strips, in a list of 16 bits that is both their places and their lengths."""
    tags = [*_GREY[:3], (259, "H", [1]), _GREY[3], (273, "H", [8] * count), (278, "I", [1])]
    return tiff([*tags, (279, "H", [1] * 16)], bytes(256))


def webp_lossless(side: int) -> bytes:
    """One colour, in less than 50 bytes."""
    bits = (side - 1) | (side - 1) << 14 | 1 << 28  # size, alpha, version 0
    codes = 0b000  # no transform, no cache, no further codes
    for place in range(5):
        # A code of one symbol, of one bit, which is 0.
        codes |= 0b0001 << (3 + 4 * place)
    data = b"\x2f" + struct.pack("<I", bits) + struct.pack("<Q", codes)
    data += b"\x00" * (len(data) % 2)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif_block(entries: int, size: int) -> bytes:
    """A directory of EXIF whose every entry is all of the block's `size` bytes."""
    count = size - 8
    listed = b"".join(struct.pack("<HHII", number, 1, count, 8) for number in range(1, entries + 1))
    block = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", entries) + listed
    return block.ljust(size, b"\x00")


def jpeg_exif() -> bytes:
    """A good JPEG with 350 MB of EXIF in 64 KB."""
    good = small("JPEG")
    return good[:2] + _segment(0xE1, b"Exif\x00\x00" + exif_block(5400, 65_500)) + good[2:]


def png_exif() -> bytes:
    """A good PNG with 65 GB of EXIF in 1 MB."""
    good = small("PNG")
    return good[:33] + _chunk(b"eXIf", exif_block(65_000, 1_000_000)) + good[33:]


def webp_exif() -> bytes:
    """A good WebP with 65 GB of EXIF in 1 MB."""
    buffer = io.BytesIO()
    _grey().save(buffer, "WEBP", exif=exif_block(65_000, 1_000_000))
    return buffer.getvalue()


def gif_comments(count: int) -> bytes:
    """A good GIF with `count` comments before its pixels."""
    good = small("GIF")
    begin = good.index(b"\x2c")
    return good[:begin] + b"\x21\xfe\x01a\x00" * count + good[begin:]


def encoded_large(image_format: str, side: int = SIDE) -> bytes:
    """A grey image that a usual encoder made."""
    buffer = io.BytesIO()
    options = {"WEBP": {"method": 0, "quality": 1}, "AVIF": {"speed": 10, "quality": 1}}[image_format]
    Image.new("RGB", (side, side), "grey").save(buffer, image_format, **options)
    return buffer.getvalue()


def _grey() -> Image.Image:
    return Image.new("RGB", (64, 64), "grey")


def small(image_format: str) -> bytes:
    """A good image of 64 x 64."""
    buffer = io.BytesIO()
    _grey().save(buffer, image_format)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "jpeg of 1,000 scans": lambda: jpeg_scans(SIDE, 1000),
    "jpeg of 100 scans": lambda: jpeg_scans(SIDE, 100),
    "jpeg of 8 million segments": lambda: jpeg_segments(8_000_000),
    "jpeg with exif of 350 MB": jpeg_exif,
    "bmp rle, long": lambda: bmp_rle(SIDE * SIDE, 1),
    "bmp rle, square": lambda: bmp_rle(SIDE, SIDE),
    "png of one column": lambda: png(1, SIDE * SIDE, color=0),
    "png of many pixels": lambda: png(SIDE, SIDE),
    "png of many pixels with alpha": lambda: png(SIDE, SIDE, color=6),
    "png thin and long": lambda: png(1, 65_500),
    "png that grows": lambda: png(1, 1700),
    "png of 2.5 million chunks": lambda: png_chunks(2_500_000),
    "png of 60 MB of text": lambda: png_text(60),
    "png with exif of 65 GB": png_exif,
    "tiff of one large tile": lambda: tiff_tile(26_000),
    "tiff of 3 million strips": lambda: tiff_strips(3_000_000),
    "webp lossless": lambda: webp_lossless(SIDE),
    "webp with exif of 65 GB": webp_exif,
    "gif of 5 million comments": lambda: gif_comments(5_000_000),
}
# Their encoders take seconds.
SLOWLY_MADE: dict[str, Callable[[], bytes]] = {
    "webp lossy": lambda: encoded_large("WEBP"),
    **({"avif": lambda: encoded_large("AVIF", 8900)} if features.check("avif") else {}),
}
