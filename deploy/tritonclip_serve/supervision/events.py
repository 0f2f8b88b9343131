"""What happened to a server and its models: a line each for people, a count each for the metrics."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone

RESTARTS = "tritonclip_restarts_total"
FAILURES = "tritonclip_restart_failures_total"
_HELP = {
    RESTARTS: "Models and servers that came back after they died or hung, by cause",
    FAILURES: "Attempts to bring a model or a server back that failed",
}


@dataclass(frozen=True)
class Cause:
    """Why something has to be started again.

    Attributes:
        kind: one of few words, for a metric's label: `signal SIGKILL`, `hung`, `memory` …
        phrase: the same with its figures, for people.
    """

    kind: str
    phrase: str


class Events:
    """Writes and counts what happens; from any thread.

    Args:
        write: takes one line without its end; by default to stderr.
    """

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write or _to_stderr
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._lock = threading.Lock()

    def restarted(self, what: str, name: str, cause: Cause, seconds: float, done: str) -> None:
        """Something is back.

        Args:
            what: `model` or `server`.
            seconds: how long it was away, from when its end was seen.
            done: what brought it back, such as `loaded again`.
        """
        self._count(RESTARTS, what=what, name=name, cause=cause.kind)
        self.say(f"{what} {name}: {cause.phrase}; {done}, back after {seconds:.2f} s")

    def failed(self, what: str, name: str, cause: Cause, reason: str, next_s: float) -> None:
        """Something did not come back; it is tried again in `next_s` seconds."""
        self._count(FAILURES, what=what, name=name)
        self.say(f"{what} {name}: {cause.phrase}; it did not come back ({reason}), next try in {next_s:.1f} s")

    def say(self, text: str) -> None:
        """One line with the time, UTC."""
        now = datetime.fromtimestamp(time.time(), timezone.utc)
        self._write(f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z {' '.join(text.split())}")

    def counts(self) -> dict[str, int]:
        """Every counter by its name with labels, as Prometheus writes it."""
        with self._lock:
            return {_with_labels(name, labels): count for (name, labels), count in sorted(self._counts.items())}

    def prometheus(self) -> str:
        """All counters in Prometheus' text format; ends with a line break."""
        counts = self.counts()
        lines = []
        for name, help_text in _HELP.items():
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter"]
            lines += [f"{key} {count}" for key, count in counts.items() if key.startswith(f"{name}{{")]
        return "\n".join(lines) + "\n"

    def _count(self, counter: str, /, **labels: str) -> None:
        with self._lock:
            self._counts[counter, tuple(sorted(labels.items()))] += 1


def _with_labels(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
    return f"{name}{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _to_stderr(line: str) -> None:
    # Nobody may be reading any more, or the disk behind it may be full.
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
