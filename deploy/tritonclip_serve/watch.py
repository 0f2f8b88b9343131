"""Follows the log of a server: what has loaded, what has failed, what it said at its end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tritonclip_serve import diagnosis
from tritonclip_serve.errors import ModelLoadError, ServeError, ServerDiedError
from tritonclip_serve.log import ServerLog

Progress = Callable[[str], None]

# After a model failed the server still unloads the others before it ends; some failures it does not notice.
_SETTLE_S = 8.0
_COPY_EVERY_S = 0.2


class StartupWatch:
    """Watches one server while it loads its models.

    Args:
        log: the server's log.
        models: the names of all models that it has to load.
        on_progress: called with a short phrase whenever there is news.
    """

    def __init__(self, log: ServerLog, models: Sequence[str], on_progress: Progress | None = None) -> None:
        self._log = log
        self._models = models
        self._on_progress = on_progress
        self._news = ""
        self._failed_at: float | None = None

    def look(self) -> None:
        """Report what is new.

        Raises:
            ModelLoadError: a model failed, and the server has not ended by itself since.
        """
        log = self._log.read()
        self._report(log)
        failures = diagnosis.find_failures(log)
        if failures and self._failed_at is None:
            self._failed_at = time.monotonic()
        if self._failed_at is not None and time.monotonic() - self._failed_at > _SETTLE_S:
            raise ModelLoadError(failures, self._log.path)

    def missing(self) -> str:
        """The models that have not loaded yet, as a phrase; empty when there is none."""
        waiting = sorted(set(self._models) - diagnosis.loaded_models(self._log.read()))
        return f"; not loaded: {', '.join(waiting)}" if waiting else ""

    def _report(self, log: str) -> None:
        news = f"{len(diagnosis.loaded_models(log))} of {len(self._models)} models loaded"
        if self._on_progress is not None and news != self._news:
            self._on_progress(news)
        self._news = news


def explain_end(status: int, log: ServerLog) -> ServeError:
    """Why a server ended, from its exit status (negative: the signal) and its log."""
    failures = diagnosis.find_failures(log.read())
    if failures:
        return ModelLoadError(failures, log.path)
    return ServerDiedError(
        f"tritonserver ended by itself ({exit_cause(status)}): {diagnosis.last_words(log.tail())}\n"
        f"  the whole log is in {log.path}"
    )


def exit_cause(status: int) -> str:
    """An exit status (negative: the signal) as a phrase."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


@contextmanager
def copied_log(path: Path, target: BinaryIO) -> Iterator[None]:
    """Copy the log to `target` as it grows, and what is left of it when the block ends."""
    ended = threading.Event()
    copier = threading.Thread(target=_copy, args=(path, target, ended), name="log", daemon=True)
    copier.start()
    try:
        yield
    finally:
        ended.set()
        copier.join()


def _copy(path: Path, target: BinaryIO, ended: threading.Event) -> None:
    position = 0
    while True:
        is_last = ended.wait(_COPY_EVERY_S)
        # A reader of ours that is gone, such as a closed pipe, must not end the server.
        with suppress(OSError), path.open("rb") as log:
            # Shorter than before: it was moved away.
            position = log.seek(position if position <= path.stat().st_size else 0)
            piece = log.read()
            position += len(piece)
            target.write(piece)
            target.flush()
        if is_last:
            return
