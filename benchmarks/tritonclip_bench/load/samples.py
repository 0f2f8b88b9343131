"""Every request of a measured window, kept as it was: the raw samples behind all numbers."""

from __future__ import annotations

import csv
import gzip
import io
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritonclip_bench.errors import BenchError
from tritonclip_bench.load.latency import distribution, summarize_ms
from tritonclip_client.files import replacing

HEADER = ("due_s", "model", "items", "latency_ms", "outcome")


class Outcome(NamedTuple):
    """What became of a request.

    Attributes:
        text: for people; of a failure its reason.
        failed: whether it counts as a failure.
        timed: whether its time belongs to the percentiles.
    """

    text: str
    failed: bool
    timed: bool


ANSWERED = Outcome("ok", False, True)
UNANSWERED = Outcome("unanswered", False, True)


@dataclass
class Columns:
    """Requests in the order of their ends: what is appended while the load runs, 22 bytes a request.

    `outcome` is a place in a list of Outcomes, which is kept elsewhere.
    """

    due_s: array[float] = field(default_factory=lambda: array("d"))
    latency_ms: array[float] = field(default_factory=lambda: array("d"))
    items: array[int] = field(default_factory=lambda: array("I"))
    outcome: array[int] = field(default_factory=lambda: array("H"))

    def append(self, due_s: float, latency_ms: float, items: int, outcome: int) -> None:
        """Note one request."""
        self.due_s.append(due_s)
        self.latency_ms.append(latency_ms)
        self.items.append(items)
        self.outcome.append(outcome)

    def to_bytes(self, begin: int, begun_s: float) -> list[bytes]:
        """The columns from row `begin` on, for another process; `due_s` in seconds from `begun_s`."""
        due_s = np.array(self.due_s[begin:], np.float64) - begun_s
        return [due_s.tobytes(), *(column[begin:].tobytes() for column in self.all()[1:])]

    def extend(self, columns: Sequence[bytes], codes: Sequence[int], begun_s: float) -> None:
        """Add what `to_bytes` gave; `codes` are this process's places of the other's outcomes."""
        added = Columns()
        for column, content in zip(added.all(), columns, strict=True):
            column.frombytes(content)
        self.due_s.extend(due_s + begun_s for due_s in added.due_s)
        self.latency_ms.extend(added.latency_ms)
        self.items.extend(added.items)
        self.outcome.extend(codes[code] for code in added.outcome)

    def all(self) -> list[array[Any]]:
        """The columns, in the order in which they are declared."""
        return [self.due_s, self.latency_ms, self.items, self.outcome]


@dataclass(frozen=True)
class Samples:
    """The requests of one entry point, or of all.

    Attributes:
        due_s: float64 [N], when each was due (in a closed loop: sent), in seconds from the window's begin.
        latency_ms: float64 [N], how long it took from then on; of the unanswered, their age.
        items: int64 [N].
        outcome: int64 [N], places in `outcomes`.
    """

    due_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    items: NDArray[np.int64]
    outcome: NDArray[np.int64]
    outcomes: Sequence[Outcome]

    @classmethod
    def of(cls, columns: Columns, outcomes: Sequence[Outcome], begun_s: float) -> Samples:
        """A copy of `columns`, whose times are seconds of the clock on which the window began at `begun_s`."""
        return cls(
            np.array(columns.due_s, np.float64) - begun_s,
            np.array(columns.latency_ms, np.float64),
            np.array(columns.items, np.int64),
            np.array(columns.outcome, np.int64),
            outcomes,
        )

    @classmethod
    def together(cls, parts: Iterable[Samples], outcomes: Sequence[Outcome]) -> Samples:
        """All requests of `parts`, which share their outcomes."""
        found = list(parts) or [cls.of(Columns(), outcomes, 0.0)]
        return cls(
            np.concatenate([part.due_s for part in found]),
            np.concatenate([part.latency_ms for part in found]),
            np.concatenate([part.items for part in found]),
            np.concatenate([part.outcome for part in found]),
            outcomes,
        )

    @property
    def end_s(self) -> NDArray[np.float64]:
        """When each was answered or failed, in seconds from the window's begin."""
        return self.due_s + self.latency_ms / 1000

    def where(self, chosen: NDArray[np.bool_]) -> Samples:
        """Those that `chosen`, [N], is true for."""
        return Samples(
            self.due_s[chosen], self.latency_ms[chosen], self.items[chosen], self.outcome[chosen], self.outcomes
        )

    def are(self, kind: str) -> NDArray[np.bool_]:
        """[N]: whether each is of a `kind`: "answered" rightly, "failed", or "timed", which is in the percentiles."""
        of = {
            "answered": [outcome == ANSWERED for outcome in self.outcomes],
            "failed": [outcome.failed for outcome in self.outcomes],
            "timed": [outcome.timed for outcome in self.outcomes],
        }
        return np.array([*of[kind], False])[self.outcome]

    def summary(self, window_s: float) -> dict[str, object]:
        """Rates, exact percentiles, the distribution and failures, for JSON.

        The ages of an open loop's requests without answer, at the window's end or when their time was up, belong to
        the percentiles, as the least that they take: left out, a server that answers nothing any more would look fast.
        """
        answered, timed = self.are("answered"), self.latency_ms[self.are("timed")]
        requests, items = int(answered.sum()), int(self.items[answered].sum())
        return {
            "requests": requests,
            "items": items,
            "requests_per_s": requests / window_s,
            "items_per_s": items / window_s,
            "latency_ms": summarize_ms(timed),
            "distribution": distribution(timed),
            "unanswered": sum(self._counts(UNANSWERED).values()),
            "failures": int(self.are("failed").sum()),
            "failure_reasons": self._counts(*(outcome for outcome in self.outcomes if outcome.failed)),
        }

    def _counts(self, *outcomes: Outcome) -> dict[str, int]:
        """How many there are of each text, most first."""
        found = np.bincount(self.outcome, minlength=len(self.outcomes))
        counts: dict[str, int] = {}
        for outcome, count in zip(self.outcomes, found.tolist(), strict=True):
            if outcome in outcomes and count:
                counts[outcome.text] = counts.get(outcome.text, 0) + count
        return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def write_samples(path: Path, by_model: Mapping[str, Samples]) -> None:
    """Write every request as a line of CSV, by the time when it was due; compressed where the name ends in .gz.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    rows = sorted(
        (due_s, model, items, latency_ms, samples.outcomes[code].text)
        for model, samples in by_model.items()
        for due_s, items, latency_ms, code in zip(
            *(column.tolist() for column in (samples.due_s, samples.items, samples.latency_ms, samples.outcome)),
            strict=True,
        )
    )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((f"{due_s:.6f}", model, items, f"{took:.4f}", what) for due_s, model, items, took, what in rows)
    content = text.getvalue().encode()
    try:
        with replacing(path) as file:
            # Without the time of writing, equal samples are equal files.
            file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except OSError as error:
        raise BenchError(f"{path} cannot be written ({error.strerror}); give a file in a folder that exists") from None
