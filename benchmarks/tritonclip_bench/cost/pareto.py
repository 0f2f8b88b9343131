"""Cost against latency over many runs: which are worth having, and which are beaten on both by another.

A run is on the Pareto front where no other is at least as cheap and at least as fast, and better in one of the two: the
cost of a million items and the 99th percentile. Hugging Face's "1 Billion Classifications" shows its servers so.
Images are compared with images only, and dollars with dollars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tritonclip_bench import records
from tritonclip_bench.cost.dollars import cost
from tritonclip_bench.cost.prices import SPOT, Price
from tritonclip_bench.records import Record
from tritonclip_bench.traffic.scenarios import SCENARIOS

ON_FRONT = "on the front"


@dataclass(frozen=True)
class Run:
    """One load run of a record.

    Attributes:
        item: what is counted, in the plural.
        items_per_s, p99_ms: None where nothing was answered.
        cost: of `dollars.cost`; None without a price.
        flaw: why the run is compared with none; None where it may be.
        same_work: what has to be equal for two costs to be of the same thing, for people.
        failures: requests that failed, and how many were sent, for people; None where none did.
    """

    label: str
    item: str
    items_per_s: float | None
    p99_ms: float | None
    cost: dict[str, Any] | None
    flaw: str | None
    same_work: str
    failures: str | None = None

    @property
    def point(self) -> tuple[float, float] | None:
        """Cost of a million items and milliseconds, where the run may be compared."""
        if self.flaw or self.cost is None or self.p99_ms is None:
            return None
        return self.cost["dollars_per_million"], self.p99_ms

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run_of(load: Record, price: Price | None) -> Run:
    """The run of a load record (of `records.read_loads`).

    Args:
        price: to count with; None: the record's own.

    Raises:
        PriceError: the record's price is none.
    """
    scenario = SCENARIOS.get(records.text(load, "plan", "scenario") or "")
    item = records.text(load, "cost", "item") or (scenario.item if scenario else "items")
    items_per_s = records.number(load, "results", "total", "items_per_s")
    p99_ms = records.number(load, "results", "total", "latency_ms", "p99")
    own = records.section(load, "cost", "price")
    counted = price or (Price.from_dict(own) if own else None)
    spread = records.section(load, "spread", "items_per_s")
    known = all(records.number(spread, key) is not None for key in ("n", "mean", "half_width"))
    spec = records.section(load, "server", "spec")
    same = (records.text(spec, key) for key in ("name", "architecture", "precision", "fingerprint"))
    return Run(
        load["label"],
        item,
        items_per_s,
        p99_ms,
        cost(items_per_s or 0.0, counted, item, spread if known else None),
        _flaw(load, counted),
        " ".join([*_scenario(load), *(part[:12] for part in same if part)]),
        _failures(load),
    )


def _scenario(load: Record) -> list[str]:
    """What was sent; of `clip` with its texts, which are computed too but not counted."""
    scenario = records.text(load, "plan", "scenario")
    labels = records.number(load, "plan", "labels")
    return [f"clip, {labels:g}" if scenario == "clip" and labels is not None else scenario] if scenario else []


def _failures(load: Record) -> str | None:
    failed, answered = (records.number(load, "results", "total", key) or 0 for key in ("failures", "requests"))
    return f"{failed:,.0f} of {failed + answered:,.0f} requests" if failed else None


def _flaw(load: Record, price: Price | None) -> str | None:
    trial = records.text(load, "trial", "verdict")
    total = records.section(load, "results", "total")
    if broken := load["broken"] or records.text(load, "results", "broken"):
        return f"broken: {broken}"
    if trial not in (None, "sustained"):
        return f"the objective was missed: {records.text(load, 'trial', 'reason') or trial}"
    if not records.number(total, "items_per_s") or records.number(total, "latency_ms", "p99") is None:
        return "nothing was answered"
    return "no price" if price is None else None


def dominators(runs: Sequence[Run]) -> list[list[str] | None]:
    """For each run the labels of those that beat it: none for one on the front; None where it is compared with none."""
    return [None if run.point is None else [other.label for other in runs if _beats(other, run)] for run in runs]


def _beats(one: Run, other: Run) -> bool:
    if one.point is None or other.point is None or one.cost is None or other.cost is None:
        return False
    if (one.item, one.cost["currency"]) != (other.item, other.cost["currency"]):
        return False
    return one.point != other.point and all(a <= b for a, b in zip(one.point, other.point, strict=True))


def verdicts(runs: Sequence[Run]) -> list[str]:
    """For each run, for people: on the front, beaten by which, or why it is not compared."""
    found = []
    for run, by in zip(runs, dominators(runs), strict=True):
        if by is None:
            found.append(run.flaw or "not compared")
        else:
            # The first three tell enough.
            more = f" and {len(by) - 3} more" if len(by) > 3 else ""
            found.append(f"dominated by {', '.join(by[:3])}{more}" if by else ON_FRONT)
    return found


def different_work(runs: Sequence[Run]) -> list[str]:
    """A sentence, where the runs are not of the same scenario and model."""
    kinds = {(run.item, run.same_work or "unknown") for run in runs}
    # Other items are compared with each other by nobody.
    if len(kinds) == len({item for item, _ in kinds}):
        return []
    return [f"the runs are of different work: {'; '.join(sorted(work for _, work in kinds))}"]


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing the runs."""
    found = [warning for run in runs if run.cost for warning in run.cost["warnings"]]
    compared = [run for run in runs if run.point]
    found += [f"{run.label}: {run.failures} failed, and are not counted" for run in compared if run.failures]
    found += different_work(compared)
    if len({run.cost["price"]["kind"] == SPOT for run in compared if run.cost}) > 1:
        found.append("some runs are priced as spot, which may be taken away at any time, and others are not")
    for what in ({run.item for run in compared}, {run.cost["currency"] for run in compared if run.cost}):
        if len(what) > 1:
            found.append(f"{' and '.join(sorted(what))} are not compared with each other")
    return list(dict.fromkeys(found))
