"""What a campaign found: records, what was asked of them, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["answered", "refused", "failed", "wrong", "lost"]
# Of the errors that a record met, that many stand in it, each once.
MOST_EXAMPLES = 5


@dataclass(frozen=True)
class Sample:
    """What became of one call.

    Attributes:
        kind: of the call, such as `image`.
        begin_s, end_s: of `time.monotonic`.
        outcome: `refused` is an error that the campaign allows, `failed` one that it does not; `wrong` an answer that
            differs from its reference; `lost` a call without an answer within its deadline.
        detail: the error, or how the answer differs.
        exact: the answer is bitwise its reference.
    """

    kind: str
    begin_s: float
    end_s: float
    outcome: Outcome
    detail: str = ""
    exact: bool = True


@dataclass(frozen=True)
class Check:
    """One thing asked of a record.

    Attributes:
        what: a phrase such as "back within".
        value: measured.
        limit: that it is held against.
        at_least: whether more is better.
        unit: for people: "s", "MB", "x" or none.
    """

    what: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Record:
    """One case of a campaign.

    Attributes:
        campaign, case, seed: which one, and what decided it.
        tried: calls, or inputs.
        answered, refused, failed, wrong, lost: what became of them; they sum up to `tried`.
        worst_s: seconds that the slowest took.
        worst_mb: megabytes (PSS of the server's process tree) at the highest; 0: not looked at.
        outage_s: seconds without a good answer to one kind of call, at the longest; 0: not looked at.
        leftovers: what was there after the end: processes, shared memory, files, sockets.
        figures: whatever else was measured, by a phrase for the page.
        checks: what was asked of this record.
        examples: some of the errors, as the callers got them.
        skipped: why this case was not tried.
    """

    campaign: str
    case: str
    seed: int
    tried: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    wrong: int = 0
    lost: int = 0
    worst_s: float = 0.0
    worst_mb: float = 0.0
    outage_s: float = 0.0
    leftovers: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    skipped: str = ""

    def add(self, samples: Iterable[Sample]) -> None:
        """Count what became of calls."""
        for sample in samples:
            self.tried += 1
            setattr(self, sample.outcome, getattr(self, sample.outcome) + 1)
            self.worst_s = max(self.worst_s, sample.end_s - sample.begin_s)
            if not sample.exact and sample.outcome == "answered":
                self.count("answers not bitwise equal")
            if sample.outcome != "answered":
                self.example(sample.detail)

    def count(self, figure: str, by: float = 1) -> None:
        """Add to a figure."""
        self.figures[figure] = self.figures.get(figure, 0) + by

    def example(self, text: str) -> None:
        """Keep an error, unless there are enough, or this one is there."""
        line = " ".join(text.split())[:200]
        if line and len(self.examples) < MOST_EXAMPLES and line not in self.examples:
            self.examples.append(line)

    def check(self, what: str, value: float, limit: float, *, at_least: bool = False, unit: str = "") -> None:
        """Hold a value against a limit."""
        self.checks.append(Check(what, float(value), float(limit), at_least, unit))

    @property
    def met(self) -> bool:
        """Whether every check of it is."""
        return all(check.met for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The record for JSON; `from_json` reads it."""
        return {**asdict(self), "checks": [{**asdict(check), "met": check.met} for check in self.checks]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """A record as `as_json` wrote it."""
        checks = [Check(**{key: value for key, value in one.items() if key != "met"}) for one in values["checks"]]
        return cls(**{**values, "checks": checks})
