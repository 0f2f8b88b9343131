"""The folder and the shared memory of one run of a server, and what killed runs left of theirs."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tritonclip_serve.process import is_process, live_members, start_time

SHARED_MEMORY = Path("/dev/shm")
BOARDS = "boards"
# No "-": DALI reads nothing from a path that has one.
PREFIX = "tritonclip_"
_LOCK, _OWNER, _SERVER = "lock", "owner", "server"
_KILL_WAIT_S = 3.0
_POLL_S = 0.02


class RunFolder:
    """A folder in the temporary directory, and the prefix of the run's segments of shared memory.

    Both are locked for as long as this process or the server lives, so that `sweep` can tell what is left over, also
    where process ids repeat (containers).

    Attributes:
        path: the folder; `boards/` in it is for the Python models.
        shared_memory_prefix: what the names of all segments begin with.
        locks: descriptors that the server has to inherit.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        (self.path / BOARDS).mkdir()
        self.shared_memory_prefix = f"{self.path.name}-"
        self.locks = tuple(_locked(path) for path in (self.path / _LOCK, _segment_lock(self.path.name)))
        _write_process(self.path / _OWNER, os.getpid())

    def note_server(self, pid: int) -> None:
        """Record which process serves, so that a sweep can end it when its owner was killed."""
        _write_process(self.path / _SERVER, pid)

    def close_segments(self) -> None:
        """Let only this user read the shared memory, which holds callers' images and texts.

        The Python backend makes its segments readable by everybody, whatever the umask.
        """
        for segment in SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            with suppress(OSError):
                segment.chmod(0o600)

    def remove(self) -> None:
        """Remove the folder and the segments; the server has ended."""
        for lock in self.locks:
            if lock is not None:
                os.close(lock)
        self.locks = ()
        _remove(self.path)

    def inherited(self) -> tuple[int, ...]:
        """The descriptors that exist."""
        return tuple(lock for lock in self.locks if lock is not None)


def sweep() -> list[str]:
    """Remove what runs of this user left behind whose owner was killed, and end their servers.

    Returns:
        The names of the runs that were removed.
    """
    return [name for name in sorted(_left_names()) if _sweep(name)]


def remove_shared_memory(prefix: str) -> None:
    """Remove the segments whose names begin with `prefix`."""
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        with suppress(OSError):
            segment.unlink(missing_ok=True)


def _left_names() -> Iterator[str]:
    mine = os.geteuid()
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_LOCK}"):
        with suppress(OSError):
            if not path.parent.is_symlink() and path.parent.stat().st_uid == mine:
                yield path.parent.name
    for path in SHARED_MEMORY.glob(f"{PREFIX}*-{_LOCK}"):
        with suppress(OSError):
            name = path.name.removesuffix(f"-{_LOCK}")
            if path.lstat().st_uid == mine and not (Path(tempfile.gettempdir()) / name).exists():
                yield name


def _sweep(name: str) -> bool:
    folder = Path(tempfile.gettempdir()) / name
    lock = folder / _LOCK if folder.is_dir() else _segment_lock(name)
    if not _is_free(lock) and not (_is_orphan(folder) and _end_orphan(folder, lock)):
        return False
    _remove(folder)
    return True


def _remove(folder: Path) -> None:
    remove_shared_memory(f"{folder.name}-")
    shutil.rmtree(folder, ignore_errors=True)


def _segment_lock(name: str) -> Path:
    return SHARED_MEMORY / f"{name}-{_LOCK}"


def _locked(path: Path) -> int | None:
    """An inheritable descriptor that holds the lock; None where the file cannot be made, as on a full disk."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return descriptor


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_orphan(folder: Path) -> bool:
    owner = _read_process(folder / _OWNER)
    return owner is not None and not is_process(*owner)


def _end_orphan(folder: Path, lock: Path) -> bool:
    server = _read_process(folder / _SERVER)
    members = live_members(server[0]) if server is not None else []
    # The number may be another group's by now; the server and its models name their memory in their arguments.
    if server is not None and any(_names(pid, folder.name) for pid in members):
        with suppress(OSError):
            os.killpg(server[0], signal.SIGKILL)
    deadline = time.monotonic() + _KILL_WAIT_S
    while not (free := _is_free(lock)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return free


def _names(pid: int, name: str) -> bool:
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _write_process(path: Path, pid: int) -> None:
    with suppress(OSError):
        path.write_text(f"{pid} {start_time(pid)}", encoding="utf-8")


def _read_process(path: Path) -> tuple[int, int] | None:
    try:
        pid, started = path.read_text(encoding="utf-8").split()
        return int(pid), int(started)
    except (OSError, ValueError):
        return None
