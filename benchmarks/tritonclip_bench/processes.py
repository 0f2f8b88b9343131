"""Commands that run in a process of their own, and end with the one that started them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# A command that is asked to end may have a command of its own to end first.
PATIENCE_S = 10.0


@contextmanager
def running(command: Sequence[str], stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """The process, ended at the latest when the block is left; main thread only."""
    # SIGTERM ends this process as Ctrl-C does, so that the other does not go on without it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, text=True)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            _kill_unless_gone(process)


def _kill_unless_gone(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
