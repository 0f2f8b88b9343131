"""Whether two records differ by more than the noise of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tritonclip_bench.cost.prices import DEFAULT_CURRENCY, dollars_per_million
from tritonclip_bench.errors import BenchError
from tritonclip_bench.records import Record, number, section, text
from tritonclip_bench.results.spread import Difference, difference, spread, whole_runs

COST = "cost per million"
# What is compared: name, and whether more is better.
METRICS = {"items/s": True, "p50 ms": False, "p99 ms": False, COST: False}
# Kinds whose runs differ in something else than the load.
NAMED = ("tune", "baselines")
BEYOND, WITHIN, UNKNOWN = "beyond the noise", "within the noise", "the noise is unknown"


@dataclass(frozen=True)
class Change:
    """One figure of both sides.

    Attributes:
        metric: a key of METRICS.
        before, after: means over the whole runs.
        difference: None where a side does not have the figure.
    """

    metric: str
    before: float | None
    after: float | None
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """Whether the difference is more than chance."""
        if self.difference is None:
            return "not measured on both sides"
        return {None: UNKNOWN, True: BEYOND, False: WITHIN}[self.difference.exceeds_noise]

    def is_worse(self, by: float) -> bool:
        """Whether `after` is worse by the share `by` (0 to 1) or more, and beyond the noise."""
        if self.difference is None or not self.difference.exceeds_noise or self.difference.relative is None:
            return False
        loss = -self.difference.relative if METRICS[self.metric] else self.difference.relative
        return loss >= by and loss > 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = None if self.difference is None else self.difference.to_dict()
        return {**asdict(self), "difference": found, "verdict": self.verdict}


@dataclass(frozen=True)
class Comparison:
    """Two load records, the second against the first.

    Attributes:
        labels: of both.
        changes: one for each metric; none of the cost where the currencies differ.
        warnings: what else differs between them, and what makes the comparison doubtful.
        open_loop: whether both sides were offered a rate, so that throughput cannot show which is faster.
    """

    labels: tuple[str, str]
    changes: Sequence[Change]
    warnings: Sequence[str]
    open_loop: bool

    def is_slower(self, by: float) -> bool:
        """Whether the second side is slower by the share `by`, beyond the noise: in throughput, or p99 in an open loop.

        Raises:
            BenchError: it cannot be told, for want of repeats or of answers.
        """
        judged = [change for change in self.changes if change.metric in self._judged()]
        if missing := [change.metric for change in judged if change.difference is None]:
            raise BenchError(
                f"{' against '.join(self.labels)}: {' and '.join(missing)} was not measured on both sides, so slower "
                "or not cannot be said; see why nothing was answered, and measure again"
            )
        if any(change.difference and change.difference.exceeds_noise is None for change in judged):
            raise BenchError(
                f"{' against '.join(self.labels)}: a single run on a side tells nothing of the noise, so slower or not "
                "cannot be said; measure both sides with --runs 3 or more"
            )
        return any(change.is_worse(by) for change in judged)

    def _judged(self) -> tuple[str, ...]:
        return ("items/s", "p99 ms") if self.open_loop else ("items/s",)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "labels": list(self.labels),
            "changes": [change.to_dict() for change in self.changes],
            "warnings": list(self.warnings),
        }


def pairs(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """What to compare with what: one record with one, or of several those that were made under the same load.

    Of sweeps and of comparisons with baselines, whose runs have all the same load, those of the same name.

    Raises:
        BenchError: nothing of one side was made under a load of the other.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    others = {_load_of(load): load for load in reversed(second)}
    found = [(load, others[_load_of(load)]) for load in first if _load_of(load) in others]
    if not found:
        raise BenchError(
            "no run of one side has the scenario, users, rate and batch (of sweeps and baselines the name too) of one "
            "of the other; compare records of the same load"
        )
    return found


def compare(first: Record, second: Record) -> Comparison:
    """The second load record against the first."""
    changes = []
    # Nothing is converted.
    left_out = () if _currency(first) == _currency(second) else (COST,)
    for metric in (metric for metric in METRICS if metric not in left_out):
        before, after = _values(first, metric), _values(second, metric)
        found = difference(before, after) if before and after else None
        changes.append(Change(metric, _mean(before), _mean(after), found))
    open_loop = all(number(load, "plan", "rate") is not None for load in (first, second))
    return Comparison((first["label"], second["label"]), changes, _warnings(first, second), open_loop)


def _values(load: Record, metric: str) -> list[float]:
    found = []
    for results in whole_runs(load["repeats"]):
        items = number(results, "total", "items_per_s")
        price = number(load, "cost", "price", "price_per_hour")
        if metric == "items/s":
            value = items
        elif metric == COST:
            value = dollars_per_million(items, price) if items and items > 0 and price else None
        else:
            value = number(results, "total", "latency_ms", metric.removesuffix(" ms"))
        if value is not None:
            found.append(value)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return spread(values).mean if values else None


def _load_of(load: Record) -> tuple[object, ...]:
    plan = section(load, "plan")
    rate = number(plan, "rate")
    loop = number(plan, "users") if rate is None else f"{rate:.6g}/s"
    series = load["series"]
    name = load["label"].removeprefix(f"{series['label']}: ") if series["kind"] in NAMED else None
    return (text(plan, "scenario"), loop, number(plan, "batch_size"), name)


def _warnings(first: Record, second: Record) -> list[str]:
    found = []
    for load, side in ((first, "first"), (second, "second")):
        if load["broken"]:
            found.append(f"the {side} record is not whole: {load['broken']}")
        if any(number(results, "total", "failures") for results in load["repeats"]):
            found.append(f"requests of the {side} record failed")
    for what, before, after in _facts(first, second):
        if before != after:
            found.append(f"{what} differs: {_told(before)} and {_told(after)}")
    return found


def _facts(first: Record, second: Record) -> list[tuple[str, object, object]]:
    """What has to be the same on both sides: its name and both values."""
    paths: Mapping[str, tuple[str, ...]] = {
        "the machine": ("client_machine",),
        "Triton": ("server", "triton"),
        "where the load generator ran": ("server", "same_machine_as_client"),
        "the model (its fingerprint)": ("server", "fingerprint"),
        "the scenario": ("plan", "scenario"),
        "the number of users": ("plan", "users"),
        "the rate": ("plan", "rate"),
        "the batch": ("plan", "batch_size"),
        "the number of labels": ("plan", "labels"),
        "whether texts come again": ("plan", "repeat_texts"),
        "the set of texts": ("plan", "texts"),
        "the mix of calls": ("plan", "mix"),
        "the shape of the load": ("plan", "shape"),
        "the measured time": ("plan", "duration_s"),
        "the set of images": ("plan", "images"),
        "the price an hour": ("cost", "price", "price_per_hour"),
    }
    found = [(name, _at(first, path), _at(second, path)) for name, path in paths.items()]
    found.append(("the currency", _currency(first), _currency(second)))
    versions = [section(load, "client_versions") for load in (first, second)]
    names = sorted({*versions[0], *versions[1]})
    return found + [(f"the version of {name}", versions[0].get(name), versions[1].get(name)) for name in names]


def _currency(load: Record) -> str:
    return text(load, "cost", "price", "currency") or DEFAULT_CURRENCY


def _at(load: Record, path: Sequence[str]) -> object:
    return section(load, *path[:-1]).get(path[-1])


def _told(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
