"""The file that a server writes its output to: not somebody else's file, and not without bound."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from tritonclip_serve.errors import LogFileError

DEFAULT_MAX_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
# What is read of a log to say why a server ended.
_READ_BYTES = 4 << 20
_FLAGS = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ServerLog:
    """One log file, which one server after the other appends to.

    Args:
        path: the file; emptied by `empty`.
        max_bytes: above it the content moves to `NAME.1`, whose earlier content is lost.
    """

    def __init__(self, path: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._begin = 0

    def open(self) -> int:
        """A descriptor to append with.

        Raises:
            LogFileError: the file is a link, somebody else's, or cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, _FLAGS, 0o640)
        except OSError as error:
            reason = "it is a symbolic link" if self.path.is_symlink() else error.strerror
            raise LogFileError(f"the log cannot be written to {self.path} ({reason}); give another file") from error
        try:
            self._refuse_foreign(os.fstat(descriptor))
        except LogFileError:
            os.close(descriptor)
            raise
        return descriptor

    def empty(self) -> None:
        """Begin with an empty file, as the first server of a command does."""
        descriptor = self.open()
        # Where it is no plain file, such as /dev/null, there is nothing to empty.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
        self._begin = 0

    def mark(self) -> None:
        """Let `read` begin here: the output of the next server."""
        with suppress(OSError):
            self._begin = self.path.stat().st_size

    def has_grown(self) -> bool:
        """Whether anything came since the last `mark`."""
        try:
            return self.path.stat().st_size > self._begin
        except OSError:
            return False

    def read(self) -> str:
        """What came since the last `mark`, the beginning of it where it is very long."""
        return self._read(self._begin)

    def tail(self) -> str:
        """The last part of it."""
        try:
            return self._read(max(self._begin, self.path.stat().st_size - _COPY_BYTES))
        except OSError:
            return ""

    def cap(self) -> bool:
        """Move the content to `NAME.1` where it exceeds the limit; a full disk loses it instead. True: moved."""
        try:
            if self.path.stat().st_size <= self._max_bytes:
                return False
            self._copy()
            os.truncate(self.path, 0)
        except OSError:
            return False
        self._begin = 0
        return True

    def _read(self, position: int) -> str:
        # A device or a pipe gives somebody else's bytes, without end, or waits for them.
        if not self.path.is_file():
            return ""
        try:
            with self.path.open("rb") as file:
                file.seek(position)
                return file.read(_READ_BYTES).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _copy(self) -> None:
        """The last `max_bytes` of the file, since the server goes on writing to it."""
        older = self.path.with_name(f"{self.path.name}.1")
        with suppress(OSError):
            older.unlink(missing_ok=True)
            with self.path.open("rb") as source, older.open("xb") as target:
                source.seek(-self._max_bytes, os.SEEK_END)
                left = self._max_bytes
                while left > 0 and (piece := source.read(min(left, _COPY_BYTES))):
                    target.write(piece)
                    left -= len(piece)

    def _refuse_foreign(self, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode) and status.st_uid != os.geteuid():
            raise LogFileError(f"the log {self.path} belongs to another user; give another file")
