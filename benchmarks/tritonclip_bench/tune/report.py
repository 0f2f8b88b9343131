"""What a sweep of settings leaves: a record with every run, and a table for people."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclip_bench.cost.prices import Price, dollars_per_million
from tritonclip_bench.results.repeats import Runs
from tritonclip_bench.results.report import describe_run, make_report
from tritonclip_bench.results.spread import Spread, spread
from tritonclip_bench.tune.exports import Export
from tritonclip_bench.tune.measure import Bench
from tritonclip_bench.tune.search import FINAL, Sweep
from tritonclip_bench.tune.search_space import changes, label
from tritonclip_bench.tune.trials import Candidate, Trial, Verdict
from tritonclip_client.table import format_table

EXPORTS = "exports"
PRESENT = "present"
# In the table; JSON has all of it.
MOST_OF_A_REASON = 100
COLUMNS = ("settings", "items/s", "over present", "95 %", "p99 ms", "runs", "")


@dataclass
class Outcome:
    """All that a record tells of a sweep; what is not known yet is None or empty.

    Attributes:
        exports: the first is the user's own.
        varied: the values that were to be tried, by setting.
        reference: with whose settings the other exports were compared.
        broken: why the sweep is not whole.
    """

    sweep: Sweep
    bench: Bench
    exports: Sequence[Export]
    varied: Mapping[str, Sequence[Any]]
    price: Price | None
    label: str | None = None
    verdict: Verdict | None = None
    reference: Candidate | None = None
    written: bool = False
    broken: str | None = None

    @property
    def present(self) -> Candidate:
        """The candidate that all others are compared with."""
        return self.sweep.present

    def name(self, candidate: Candidate) -> str:
        """A candidate for people: `present`, `threads=0`, or `precision=float16, threads=0`."""
        own = label(candidate.settings, self.present.settings)
        if not candidate.export:
            return own
        return candidate.export if own == PRESENT else f"{candidate.export}, {own}"


def record(outcome: Outcome) -> dict[str, Any] | None:
    """For JSON, kind "tune"; None while nothing has been measured."""
    trials = list(outcome.sweep.trials.values())
    measured = [trial for trial in trials if trial.rounds]
    present = outcome.sweep.trials.get(outcome.present)
    if present is None or not present.rounds:
        return None
    records = [_load_record(outcome, trial) for trial in measured]
    plan, info = outcome.bench.plan, outcome.bench.info[outcome.present]
    sent = present.rounds[0].measured.results["images"]
    effort, verdict = outcome.sweep.effort, outcome.verdict
    return {
        **describe_run(plan, info, sent, kind="tune", label=outcome.label),
        "objective": {"p99_ms": effort.within_p99_ms} if effort.has_objective else None,
        "varied": {name: list(values) for name, values in outcome.varied.items()},
        "budget_s": effort.budget_s,
        "spent_s": round(outcome.sweep.spent_s, 1),
        "present": _settings(outcome, outcome.present),
        "best": verdict and verdict.best and {**_settings(outcome, verdict.best), "ratio": _dict(verdict.ratio)},
        "verdict": verdict and verdict.kind,
        "reason": verdict and verdict.reason,
        "written": outcome.written,
        "trials": [_trial(outcome, trial) for trial in trials],
        "untried": [outcome.name(candidate) for candidate in outcome.sweep.untried],
        "exports": [_export(outcome, export) for export in outcome.exports[1:]] if outcome.reference else [],
        "records": records,
        "warnings": list(dict.fromkeys(warning for one in records for warning in one["warnings"])),
        "broken": outcome.broken,
    }


def _load_record(outcome: Outcome, trial: Trial) -> dict[str, Any]:
    """A record of kind "load" with all runs of a candidate."""
    runs = Runs([one.measured.results for one in trial.rounds])
    return make_report(
        outcome.bench.plan,
        outcome.bench.info[trial.candidate],
        runs.typical(),
        outcome.price,
        label=outcome.name(trial.candidate),
        repeats=runs.results,
        broken=trial.failed or None,
    )


def _trial(outcome: Outcome, trial: Trial) -> dict[str, Any]:
    rounds = [
        {
            "phase": one.phase,
            "round": one.number,
            "seconds": one.seconds,
            "items_per_s": one.measured.items_per_s,
            "p99_ms": one.measured.p99_ms,
            "ratio": one.ratio,
        }
        for one in trial.rounds
    ]
    return {
        **_settings(outcome, trial.candidate),
        "failed": trial.failed or None,
        "ratio": _dict(_told_ratio(trial)),
        "rounds": rounds,
    }


def _settings(outcome: Outcome, candidate: Candidate) -> dict[str, Any]:
    return {
        "label": outcome.name(candidate),
        "export": candidate.export or None,
        "changes": changes(candidate.settings, outcome.present.settings),
        "settings": candidate.settings.to_dict(),
    }


def _export(outcome: Outcome, export: Export) -> dict[str, Any]:
    assert outcome.reference is not None
    candidate = Candidate(outcome.reference.settings, export.name)
    trial = outcome.sweep.trials.get(candidate)
    return {
        "label": outcome.name(candidate),
        "precision": export.spec.precision,
        "fingerprint": export.spec.fingerprint,
        "over": outcome.name(outcome.reference),
        "ratio": _dict(outcome.sweep.ratio(candidate, EXPORTS)),
        "failed": (trial and trial.failed) or None,
    }


def render(outcome: Outcome) -> str:
    """The trials by their throughput, what won, and what a reader must know."""
    trials = [trial for trial in outcome.sweep.trials.values() if not trial.candidate.export]
    trials.sort(key=lambda trial: (not trial.failed, _items_per_s(trial)), reverse=True)
    columns = COLUMNS if outcome.price is None else (*COLUMNS[:-1], f"{outcome.price.currency}/million", "")
    parts = [format_table(columns, [_row(outcome, trial) for trial in trials])]
    if outcome.verdict is not None:
        parts.append(f"\n{_verdict_line(outcome, outcome.verdict)}")
    if untried := outcome.sweep.untried:
        parts.append(f"not tried, because the budget ended: {'; '.join(map(outcome.name, untried))}")
    if outcome.reference is not None:
        parts.extend(_export_line(outcome, export) for export in outcome.exports[1:])
    told = record(outcome)
    parts.extend(f"warning: {warning}" for warning in (told or {}).get("warnings", ()))
    if outcome.broken:
        parts.append(f"broken: {outcome.broken}; what was measured before is above")
    return "\n".join(parts)


def news(outcome: Outcome, trial: Trial) -> str:
    """One line about the last run of a trial."""
    name = outcome.name(trial.candidate)
    if trial.failed:
        return f"{name}: failed: {trial.failed}"
    last = trial.rounds[-1]
    ratio = "" if last.ratio is None else f", {last.ratio:.2f} x"
    rate = f"{last.measured.items_per_s:.1f} items/s{ratio}"
    return f"{last.phase}, round {last.number}: {name}: {rate}, p99 {last.measured.p99_ms:.1f} ms"


def _row(outcome: Outcome, trial: Trial) -> tuple[str, ...]:
    name = outcome.name(trial.candidate)
    ratio = _told_ratio(trial)
    within = "-" if ratio is None or ratio.half_width is None else f"± {ratio.half_width:.2f}"
    cells = ["-", "-", "-", "-", "0"]
    if trial.rounds:
        p99_ms = statistics.median(one.measured.p99_ms for one in trial.rounds)
        over = "1.00" if name == PRESENT else "-" if ratio is None else f"{ratio.mean:.2f}"
        cells = [f"{_items_per_s(trial):.1f}", over, within, f"{p99_ms:.1f}", str(len(trial.rounds))]
    if outcome.price is not None:
        rate = _items_per_s(trial)
        cells.append(f"{dollars_per_million(rate, outcome.price.price_per_hour):.2f}" if rate else "-")
    best = outcome.verdict.best if outcome.verdict else None
    failed = textwrap.shorten(trial.failed, MOST_OF_A_REASON, placeholder=" ...")
    return (name, *cells, f"failed: {failed}" if failed else "best" if trial.candidate == best else "")


def _verdict_line(outcome: Outcome, verdict: Verdict) -> str:
    if verdict.best is None:
        heads = {
            "as good": "the present settings are as good",
            "missed": "no settings meet the objective",
            "undecided": "undecided; give a larger --budget",
        }
        leader, ratio = verdict.leader, verdict.ratio
        closest = f" ({outcome.name(leader)}: {_interval(ratio)} x)" if leader and ratio else ""
        return f"{heads[verdict.kind]}: {verdict.reason}{closest}; nothing is written"
    line = f"best: {outcome.name(verdict.best)}: {_interval(verdict.ratio)} x the present throughput; {verdict.reason}"
    if outcome.written:
        return f"{line}; written, and read by a server when it starts"
    return f"{line}; not written (--write does)"


def _export_line(outcome: Outcome, export: Export) -> str:
    told = _export(outcome, export)
    if told["failed"]:
        return f"{export.name}: failed: {told['failed']}"
    assert outcome.reference is not None
    ratio = outcome.sweep.ratio(Candidate(outcome.reference.settings, export.name), EXPORTS)
    measured = "not measured: the budget ended" if ratio is None else f"{_interval(ratio)} x the throughput"
    if ratio is not None and (ratio.half_width is None or abs(ratio.mean - 1) <= ratio.half_width):
        measured = f"no difference beyond the noise: {measured}"
    return (
        f"{export.name}: {measured} of {outcome.exports[0].spec.precision} with the same settings ({told['over']}); "
        f"its fingerprint is {export.spec.fingerprint[:12]}: embeddings of the two do not mix; nothing of it is written"
    )


def _interval(ratio: Spread | None) -> str:
    assert ratio is not None
    return f"{ratio.mean:.2f}" + ("" if ratio.half_width is None else f" ± {ratio.half_width:.2f}")


def _told_ratio(trial: Trial) -> Spread | None:
    """Of the rounds that decide, where there are any, else of those that were looked at."""
    every = [one for one in trial.rounds if one.ratio is not None]
    deciding = [one for one in every if one.phase in (FINAL, EXPORTS)] or every
    return spread([one.ratio or 0.0 for one in deciding]) if deciding else None


def _items_per_s(trial: Trial) -> float:
    return statistics.fmean(one.measured.items_per_s for one in trial.rounds) if trial.rounds else 0.0


def _dict(found: Spread | None) -> dict[str, Any] | None:
    return None if found is None else found.to_dict()
