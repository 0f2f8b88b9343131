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

from tritonclip_serve.log import ServerLog

_LAUNCHER = Path(__file__).with_name("die_with_parent.py")
# Of /proc/PID/stat after the name.
_STATE, _GROUP, _START_TIME = 0, 2, 19
_KILL_WAIT_S = 5.0
_POLL_S = 0.02


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: ServerLog, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with both outputs appended to a file; it ends when this process ends.

    Args:
        inherited: further descriptors for the program.

    Raises:
        LogFileError: the log cannot be written.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
    descriptor = log.open()
    try:
        return subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=tuple(inherited),
            # The Python backend's shared memory holds callers' pictures and texts: nobody else may read it.
            umask=0o077,
            # A Ctrl-C in the terminal reaches the caller only, who stops the server in order.
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the program to end, then kill whatever of its process group is left after `grace_s` seconds."""
    with suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.terminate()
        process.wait(timeout=grace_s)
    kill_group(process)
    process.wait(timeout=_KILL_WAIT_S)


def live_members(group: int) -> list[int]:
    """Processes of a group that still run; the ended ones that nobody has waited for do not count."""
    return [pid for pid, state, member_of in _processes() if member_of == group and state not in "ZX"]


def start_time(pid: int) -> int:
    """When a process started, in the kernel's ticks; with the id it names one process for good. 0: there is none."""
    fields = stat_fields(pid)
    return int(fields[_START_TIME]) if fields else 0


def is_process(pid: int, started: int) -> bool:
    """Whether the process with this id and `start_time` still runs."""
    fields = stat_fields(pid)
    return bool(fields) and fields[_STATE] not in "ZX" and int(fields[_START_TIME]) == started


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces: state, parent, group …; none: no process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 (often called)
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and whatever else is in its process group."""
    deadline = time.monotonic() + _KILL_WAIT_S
    while live_members(process.pid) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _processes() -> Iterator[tuple[int, str, int]]:
    for path in Path("/proc").glob("[0-9]*"):
        fields = stat_fields(int(path.name))
        if fields:
            yield int(path.name), fields[_STATE], int(fields[_GROUP])
