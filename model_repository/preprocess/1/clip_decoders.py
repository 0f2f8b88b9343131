"""A decoder process, seen from the model: an image that costs too much ends that process, and fails alone.

The process is the file `decoder_process.py`. It is started again at once, so that the next image need not wait.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from clip_fair import OverloadError
from clip_preprocess import Spent
from clip_settings import ImageError, Pixels, raise_option, settings_from, too_much_memory
from decoder_process import FAILED, LENGTH, NO_MEMORY, PIXELS, READY, REFUSED, REPLY

# Of the time that an image may take, as a multiple of the processor time: it shares its cores with others. Only a
# process that was stopped takes so long.
PATIENCE = 20.0
START_S = 60.0
RETRY_S = 1.0
# Sent by somebody else, the kernel when memory is short or whoever stops processes; the image need not be the reason.
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}
_PROGRAM = Path(__file__).with_name("decoder_process.py")
_RECEIVED_AT_ONCE = 1 << 20


class DecoderError(RuntimeError):
    """There is no decoder process, or something in it failed."""


class DecoderEndedError(OverloadError):
    """Somebody ended the process."""


class Decoder:
    """One decoder process, for one thread at a time: the process ends with the thread that started it.

    Args:
        parameters: of config.pbtxt; those of `clip_settings`.
        niceness: how far it stands behind whoever else computes on this machine.
        lazy: start the process when it is first asked for, not now.

    Attributes:
        ended: how many processes ended at their work.
        spent: what its images took.
    """

    def __init__(self, parameters: Mapping[str, str], niceness: int = 0, *, lazy: bool = False) -> None:
        self._arguments = str(niceness), json.dumps(dict(parameters))
        self._settings = settings_from(parameters)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self.ended = 0
        self.spent = Spent()
        if not lazy:
            with suppress(OSError):
                self._start()

    def decode(self, encoded: bytes) -> Pixels:
        """As `clip_preprocess.preprocess`.

        Raises:
            ImageError: the image is refused, or its decoder took too much time or memory, or crashed.
            OverloadError: the process was stopped or ended from outside.
            DecoderError: see there.
        """
        try:
            return self._decode(encoded)
        except DecoderEndedError:
            return self._decode(encoded)

    def is_ready(self) -> bool:
        """Whether it can decode without waiting for the process to start; starts it if there is none."""
        with suppress(OSError, EOFError):
            if self._process is None:
                self._start()
            elif not self._ready and select.select([self._connection], [], [], 0)[0]:
                self._await_ready()
        return self._ready

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._stop(patience=0.0)

    def _decode(self, encoded: bytes) -> Pixels:
        try:
            if self._process is None:
                self._start()
            self._await_ready()
            self._connection.settimeout(self._settings.cpu_seconds * PATIENCE)
            self._connection.sendall(LENGTH.pack(len(encoded)))
            self._connection.sendall(encoded)
            kind, length, decode_s, resize_s = REPLY.unpack(self._received(REPLY.size))
            content = self._received(length)
        except TimeoutError as error:
            self._restart(patience=0.0)
            limit = self._settings.cpu_seconds * PATIENCE
            raise OverloadError(f"an image was not decoded within {limit:g} s", RETRY_S) from error
        except (EOFError, OSError) as error:
            if self._process is None:
                raise DecoderError(f"a decoder process could not be started ({error})") from error
            raise self._failure() from error
        return self._result(kind, content, decode_s, resize_s)

    def _result(self, kind: int, content: bytes, decode_s: float, resize_s: float) -> Pixels:
        if kind == REFUSED:
            raise ImageError(content.decode())
        if kind == NO_MEMORY:
            raise too_much_memory(self._settings)
        if kind != PIXELS:
            assert kind == FAILED
            raise DecoderError(content.decode())
        self.spent.images += 1
        self.spent.decode_s += decode_s
        self.spent.resize_s += resize_s
        return np.frombuffer(content, np.uint8).reshape(self._settings.pixel_shape)

    def _failure(self) -> Exception:
        """What to say of a process that ended; there is another one then."""
        was_ready = self._ready
        status = self._restart(patience=1.0)
        limit = self._settings.cpu_seconds
        if status == -signal.SIGPROF:
            return ImageError(
                f"an image that took more than {limit:g} s of a processor to decode; at most {limit:g} s are allowed; "
                f"send a smaller or simpler image or {raise_option('--image-seconds')}"
            )
        if -status in _FROM_OUTSIDE:
            name = signal.Signals(-status).name
            return DecoderEndedError(f"a decoder process was ended by {name} from outside", RETRY_S)
        if status < 0:
            return ImageError(
                f"an image on which its decoder crashed ({signal.Signals(-status).name}); send it in another format"
            )
        if not was_ready:
            return DecoderError(f"the decoder process did not start (status {status}); see the server's log")
        return too_much_memory(self._settings)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [_python(), str(_PROGRAM), str(os.getpid()), *self._arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self._connection, self._ready = ours, False

    def _await_ready(self) -> None:
        if not self._ready:
            self._connection.settimeout(START_S)
            self._ready = self._received(len(READY)) == READY

    def _restart(self, patience: float) -> int:
        """Returns the status of the process that was."""
        if not self._ready:
            # One that cannot start must not be started as fast as it ends.
            time.sleep(1.0)
        status = self._stop(patience)
        self.ended += 1
        with suppress(OSError):
            self._start()
        return status

    def _stop(self, patience: float) -> int:
        """Returns the status of the process, which is killed if it still runs after `patience` seconds."""
        assert self._process is not None
        self._ready = False
        self._connection.close()
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status

    def _received(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            part = self._connection.recv(min(length - len(content), _RECEIVED_AT_ONCE))
            if not part:
                raise EOFError
            content += part
        return bytes(content)


def _python() -> str:
    """The interpreter that runs this; inside Triton's stub, the one that it was built to embed."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = (sys.executable, *(str(Path(prefix) / "bin" / name) for prefix in (sys.prefix, sys.base_prefix)))
    return next((path for path in candidates if path and os.access(path, os.X_OK)), name)


def _environment() -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
    # Decoders are many, and none of them multiplies matrices.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **own, **threads}
