"""Starts the server's processes, and ends all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tritonclip_serve.errors import LogFileError

_LAUNCHER = Path(__file__).with_name("die_with_parent.py")
_SHARED_MEMORY = Path("/dev/shm")
_KILL_WAIT_S = 5.0
_POLL_S = 0.02


def spawn(command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with both outputs in a file; it ends when this process ends.

    Raises:
        LogFileError: the log cannot be written.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
    with _open_log(log_path) as log:
        return subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # A Ctrl-C in the terminal reaches the caller only, who stops the server in order.
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the program to end, then kill whatever of its process group is left after `grace_s` seconds."""
    with suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.terminate()
        process.wait(timeout=grace_s)
    _kill_group(process)
    process.wait(timeout=_KILL_WAIT_S)


def remove_shared_memory(prefix: str) -> None:
    """Remove the segments whose names begin with `prefix`, which a killed server leaves behind."""
    for segment in _SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)


def _open_log(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise LogFileError(f"the log cannot be written to {path} ({error.strerror}); give another file") from error


def live_members(group: int) -> list[int]:
    """Processes of a group that still run; the ended ones that nobody has waited for do not count."""
    return [pid for pid, state, member_of in _processes() if member_of == group and state not in "ZX"]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _KILL_WAIT_S
    while live_members(process.pid) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _processes() -> Iterator[tuple[int, str, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name before the last bracket may hold spaces: state, parent and group follow it.
            state, _, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            yield int(stat.parent.name), state, int(group)
