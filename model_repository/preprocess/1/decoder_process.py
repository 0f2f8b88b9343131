"""A process that decodes one image after another, within limits; `clip_decoders` starts it.

It reads from the socket that is its standard input: 8 bytes of length, then the image. It answers each with REPLY and
what that announces. Where an image takes too much processor time, a signal ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from clip_preprocess import ImageError, ImageSettings, Spent, keep_memory, preprocess, settings_from
from PIL import Image

LENGTH = struct.Struct("<Q")
# How it went, the bytes that follow, and the seconds of decoding and of resizing.
REPLY = struct.Struct("<BQdd")
PIXELS, REFUSED, NO_MEMORY, FAILED = range(4)
READY = b"r"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the socket is closed."""
    parent, niceness, settings = int(sys.argv[1]), int(sys.argv[2]), settings_from(json.loads(sys.argv[3]))
    connection = socket.socket(fileno=0)
    os.nice(niceness)
    _prepare(parent, settings)
    connection.sendall(READY)
    while (encoded := _received(connection)) is not None:
        signal.setitimer(signal.ITIMER_PROF, settings.cpu_seconds)
        reply = _decode(encoded, settings)
        signal.setitimer(signal.ITIMER_PROF, 0)
        del encoded
        connection.sendall(reply)


def _prepare(parent: int, settings: ImageSettings) -> None:
    """Load what decoding needs, then bound the rest."""
    keep_memory()
    Image.init()
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()
    # libtiff writes a line for each oddity of a file.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + settings.megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _received(connection: socket.socket) -> bytearray | None:
    """The next image, None at the end."""
    head = _exactly(connection, LENGTH.size)
    return None if head is None else _exactly(connection, LENGTH.unpack(head)[0])


def _exactly(connection: socket.socket, length: int) -> bytearray | None:
    content = bytearray(length)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return content


def _decode(encoded: bytearray, settings: ImageSettings) -> bytes:
    spent = Spent()
    try:
        kind, content = PIXELS, preprocess(bytes(encoded), settings, spent).tobytes()
    except ImageError as error:
        kind, content = REFUSED, str(error).encode()
    except MemoryError:
        kind, content = NO_MEMORY, b""
    except Exception as error:
        kind, content = FAILED, repr(error).encode()
    return REPLY.pack(kind, len(content), spent.decode_s, spent.resize_s) + content


if __name__ == "__main__":
    main()
