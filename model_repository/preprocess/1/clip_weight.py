"""What an encoded image may cost, from its header and structure alone, before anything is decoded.

An image is small where its worst cost is provably small: a thread of the model may decode it. Whatever cannot be
proven small, damaged headers too, goes to a decoder process, whose limits hold for every format.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from clip_settings import ImageError, ImageSettings, check_bytes, check_size, too_much_memory

# Of a JPEG. Encoders write about 10; each further one is a pass over all pixels for a few bytes.
MAX_SCANS = 100

# Of a small image: bytes, pixels, pixels times scans of a JPEG, long side by short side. At these bounds an image takes
# about a third of a second and 150 MB.
SMALL_JPEG_BYTES, SMALL_JPEG_PIXELS, SMALL_JPEG_WORK = 8 << 20, 25_000_000, 40_000_000
SMALL_BYTES, SMALL_PIXELS, SMALL_RATIO = 4 << 20, 1 << 21, 100
# Segments before the pixels of a JPEG, and chunks of a PNG or WebP.
_SMALL_PARTS = 1000
# Pillow copies what every entry of an EXIF block points to.
_SMALL_EXIF_COPIES = 1 << 24

# Seconds a pixel, decoded and resized on one core, roughly; and of an image whose size only a decoder can tell.
_SECONDS = {"JPEG": 10e-9, "PNG": 26e-9, "WEBP": 28e-9}
_UNKNOWN_S = 0.2

# Bytes a pixel that Pillow's decoder takes at least; it says of too little memory what it says of damage.
_WEBP_BYTES = 12

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
# A JPEG's marker inside or behind a scan's data, without the restarts that belong to it.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_HUFFMAN_SEQUENTIAL, _HUFFMAN_PROGRESSIVE = {0xC0, 0xC1}, 0xC2
_IFD_SEGMENTS = {0xE1: b"Exif\x00\x00", 0xE2: b"MPF\x00"}


@dataclass(frozen=True)
class Weight:
    """What an image costs.

    Attributes:
        seconds: of one core, as far as the header tells.
        small: whether its worst cost is provably small.
    """

    seconds: float
    small: bool


_UNKNOWN = Weight(_UNKNOWN_S, small=False)


def weigh(encoded: bytes, settings: ImageSettings) -> Weight:
    """Look at the structure of an image, in time linear in its bytes.

    Raises:
        ImageError: it is empty or beyond a limit.
    """
    check_bytes(encoded, settings)
    try:
        if encoded.startswith(_PNG_START):
            return _weigh_png(encoded, settings)
        if encoded.startswith(b"\xff\xd8\xff"):
            return _weigh_jpeg(encoded, settings)
        if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
            return _weigh_webp(encoded, settings)
    except (struct.error, IndexError):
        # Cut off, or longer than its parts say: for a decoder to judge.
        pass
    return _UNKNOWN


def _weight(image_format: str, size: tuple[int, int], *, small: bool) -> Weight:
    pixels = size[0] * size[1]
    small = small and 0 < pixels and max(size) <= SMALL_RATIO * min(size)
    return Weight(pixels * _SECONDS[image_format] + 1e-4, small)


def _weigh_png(encoded: bytes, settings: ImageSettings) -> Weight:
    width, height = struct.unpack_from(">II", encoded, 16)
    check_size("PNG", (width, height), settings)
    light = len(encoded) <= SMALL_BYTES and width * height <= SMALL_PIXELS
    return _weight("PNG", (width, height), small=light and _plain_chunks(encoded))


def _plain_chunks(encoded: bytes) -> bool:
    """Whether a PNG has few chunks, and none that holds more than its length."""
    at = 8
    for _ in range(_SMALL_PARTS):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        data = at + 8
        if kind == b"IEND":
            return True
        if kind in (b"zTXt", b"acTL") or (kind == b"eXIf" and not _plain_exif(encoded, data, data + length)):
            return False
        if kind in (b"tEXt", b"iTXt") and not _plain_text(encoded[data : data + length]):
            return False
        at = data + length + 4
    return False


def _plain_text(content: bytes) -> bool:
    """Whether a text is neither compressed nor an EXIF block in disguise."""
    key, _, rest = content.partition(b"\x00")
    return not key.startswith(b"Raw profile type") and not rest.startswith(b"\x01")


def _weigh_webp(encoded: bytes, settings: ImageSettings) -> Weight:
    kind, flags = encoded[12:16], encoded[20]
    if kind == b"VP8X":
        sides = encoded[24:27] + b"\x00" + encoded[27:30] + b"\x00"
        width, height = (side + 1 for side in struct.unpack("<II", sides))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", encoded, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", encoded, 26))
    else:
        return _UNKNOWN
    check_size("WEBP", (width, height), settings)
    if width * height * _WEBP_BYTES > settings.megabytes * 1_000_000:
        raise too_much_memory(settings)
    light = len(encoded) <= SMALL_BYTES and width * height <= SMALL_PIXELS
    animated = kind == b"VP8X" and flags & 2
    return _weight("WEBP", (width, height), small=light and not animated and _plain_riff(encoded))


def _plain_riff(encoded: bytes) -> bool:
    at = 12
    for _ in range(_SMALL_PARTS):
        if at + 8 > len(encoded):
            return True
        kind, length = struct.unpack_from("<4sI", encoded, at)
        data = at + 8
        if kind == b"EXIF":
            start = data + 6 if encoded.startswith(b"Exif\x00\x00", data) else data
            if not _plain_exif(encoded, start, data + length):
                return False
        at = data + length + length % 2
    return False


@dataclass
class _Frame:
    """What stands before the first scan of a JPEG.

    Attributes:
        marker, size, components: of the frame.
        first_scan: where its marker is.
        directories: the markers of the segments that hold one.
    """

    marker: int = 0
    size: tuple[int, int] = (0, 0)
    components: int = 0
    first_scan: int = 0
    directories: set[int] = field(default_factory=set)


def _weigh_jpeg(encoded: bytes, settings: ImageSettings) -> Weight:
    frame = _frame(encoded)
    if frame is None:
        return _UNKNOWN
    check_size("JPEG", frame.size, settings)
    scans = 1 if _one_scan(encoded, frame) else _scans(encoded, frame.first_scan)
    if scans > MAX_SCANS:
        raise ImageError(
            f"a JPEG of more than {MAX_SCANS} scans; at most {MAX_SCANS} are allowed; save it again, as a baseline "
            "JPEG or with the usual ten scans"
        )
    pixels = frame.size[0] * frame.size[1]
    light = len(encoded) <= SMALL_JPEG_BYTES and pixels <= SMALL_JPEG_PIXELS and pixels * scans <= SMALL_JPEG_WORK
    return _weight("JPEG", frame.size, small=light)


def _frame(encoded: bytes) -> _Frame | None:
    """None where the segments are not those of an ordinary file."""
    frame, at = _Frame(), 2
    for _ in range(_SMALL_PARTS):
        if encoded[at] != 0xFF:
            return None
        marker, (length,) = encoded[at + 1], struct.unpack_from(">H", encoded, at + 2)
        if marker == _SOS:
            frame.first_scan = at
            return frame if frame.marker else None
        if not _take_segment(frame, encoded, marker, at + 4, at + 2 + length):
            return None
        at += 2 + length
    return None


def _take_segment(frame: _Frame, encoded: bytes, marker: int, begin: int, end: int) -> bool:
    """Note one segment; False where it is none of an ordinary file."""
    if marker in _FRAMES:
        bits, height, width, frame.components = struct.unpack_from(">BHHB", encoded, begin)
        known = marker in _HUFFMAN_SEQUENTIAL or marker == _HUFFMAN_PROGRESSIVE
        if frame.marker or bits != 8 or not known:
            return False
        frame.marker, frame.size = marker, (width, height)
        return True
    name = _IFD_SEGMENTS.get(marker)
    if name is not None and encoded.startswith(name, begin):
        # Several EXIF segments are one block to Pillow.
        if marker in frame.directories:
            return False
        frame.directories.add(marker)
        return _plain_exif(encoded, begin + len(name), end)
    return marker >= 0xC0 and marker != 0xFF and not 0xD0 <= marker <= _EOI


def _one_scan(encoded: bytes, frame: _Frame) -> bool:
    """Whether the first scan holds all components for good, so that libjpeg reads no other."""
    return frame.marker in _HUFFMAN_SEQUENTIAL and encoded[frame.first_scan + 4] == frame.components


def _scans(encoded: bytes, at: int) -> int:
    """How many scans there are at most; exactly, where the quick count is beyond the limit."""
    most = encoded.count(bytes((0xFF, _SOS)))
    if most <= MAX_SCANS:
        return most
    scans = 0
    for _ in range(_SMALL_PARTS):
        found = _MARKER.search(encoded, at)
        if found is None or encoded[found.end() - 1] == _EOI or scans > MAX_SCANS:
            return scans
        marker, at = encoded[found.end() - 1], found.end()
        scans += marker == _SOS
        if marker not in (_SOI, _TEM):
            at += struct.unpack_from(">H", encoded, at)[0]
    # More parts than any encoder writes.
    return MAX_SCANS + 1


def _plain_exif(encoded: bytes, begin: int, end: int) -> bool:
    """Whether the directory of a block [begin, end) is read at once."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(encoded[begin : begin + 4])
    if order is None:
        return False
    first = begin + struct.unpack_from(f"{order}I", encoded, begin + 4)[0]
    entries = struct.unpack_from(f"{order}H", encoded, first)[0]
    return bool(entries * (end - begin) <= _SMALL_EXIF_COPIES)
