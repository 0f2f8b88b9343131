"""Becomes another program, which the kernel ends with SIGTERM when the process that asked for it ends.

A script of its own and not a `preexec_fn`, which may deadlock where the caller has threads (gRPC has).
Linux only; elsewhere the program simply runs on. The kernel watches the thread that started the script: start
servers from one that lives as long as they shall.

The variable TRITONCLIP_SECRET, which only its owner can read, replaces `@secret@` in the arguments, which everybody can
read: so this script's own never hold it.

    python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT …]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
SECRET, PLACEHOLDER = "TRITONCLIP_SECRET", "@secret@"


def main(parent: int, command: list[str]) -> None:
    """Ask for the signal, then become the program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have ended before the kernel was asked.
    if os.getppid() != parent:
        sys.exit("the process that started this server has ended")
    secret = os.environ.pop(SECRET, PLACEHOLDER)
    os.execv(command[0], [word.replace(PLACEHOLDER, secret) for word in command])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
