"""A process that is asked to end ends as by Ctrl-C, so that what is half written is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside. Only the main thread gets signals: in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
