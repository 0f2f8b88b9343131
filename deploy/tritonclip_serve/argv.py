"""Takes a secret out of the command line of a child, which every user of the machine can read."""

from __future__ import annotations

from pathlib import Path

# Fields of /proc/PID/stat after the name, from 0: where the arguments lie in the process's memory.
_ARG_START, _ARG_END = 45, 46


def overwrite(pid: int, secret: str) -> bool:
    """Replace `secret` by x's in the arguments of a process; call it when the process has read them.

    Needs the right to trace the process, which a parent has of a child of the same user.

    Returns:
        Whether the arguments are free of it now.
    """
    wanted = secret.encode()
    try:
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            begin, length = _extent(pid)
            memory.seek(begin)
            arguments = memory.read(length)
            position = arguments.find(wanted)
            while position >= 0:
                memory.seek(begin + position)
                memory.write(b"x" * len(wanted))
                position = arguments.find(wanted, position + len(wanted))
        return not is_readable(pid, secret)
    except (OSError, ValueError, IndexError):
        return False


def is_readable(pid: int, secret: str) -> bool:
    """Whether the secret stands in the arguments that everybody sees."""
    try:
        return secret.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _extent(pid: int) -> tuple[int, int]:
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    begin, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not 0 < begin < end:
        raise ValueError("the kernel does not say where the arguments lie")
    return begin, end - begin
