"""Ends the connections of a server's clients, so that calls which nobody will answer any more are called again."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

# The same number on every architecture; Python has no function for it.
_PIDFD_GETFD = 438
_ESTABLISHED = "01"
_LOCAL, _STATE, _INODE = 1, 3, 9


def cut(pid: int, ports: Collection[int]) -> int:
    """Shut down every connection that a process has accepted on some ports.

    A Python model that answers out of its own threads takes its open requests with it when it dies: Triton never
    answers them. Their callers would wait for their deadlines; so they see at once that a call is lost, and repeat it.

    Args:
        pid: of a child of the same user.

    Returns:
        The number of connections.

    Raises:
        OSError: it is not allowed, as in a container without the right to trace.
    """
    pidfd = os.pidfd_open(pid)
    try:
        return sum(_shut_down(pidfd, descriptor) for descriptor in list(_accepted(pid, ports)))
    finally:
        os.close(pidfd)


def _accepted(pid: int, ports: Collection[int]) -> Iterator[int]:
    inodes = {inode for family in ("tcp", "tcp6") for inode in _inodes(Path(f"/proc/{pid}/net/{family}"), ports)}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kind, _, inode = os.readlink(path).partition(":")  # noqa: PTH115 (no path)
            if kind == "socket" and inode.strip("[]") in inodes:
                yield int(path.name)


def _inodes(table: Path, ports: Collection[int]) -> Iterator[str]:
    with suppress(OSError):
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[_STATE] == _ESTABLISHED and int(words[_LOCAL].rpartition(":")[2], 16) in ports:
                yield words[_INODE]


def _shut_down(pidfd: int, descriptor: int) -> int:
    copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    if copy < 0:
        number = ctypes.get_errno()
        if number == errno.EBADF:  # closed meanwhile
            return 0
        raise OSError(number, os.strerror(number))
    with socket.socket(fileno=copy) as connection, suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    return 1
