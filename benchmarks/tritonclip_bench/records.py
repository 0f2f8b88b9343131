"""Reads the records that the benchmarks write, old ones too, and takes them apart into single load runs.

Needs neither a server nor locust nor torch: a record is read where it was brought to.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import RecordError

NEWEST_SCHEMA = 2
# All but the first two hold load records of their own.
KINDS = ("load", "slo", "curve", "tune", "baselines", "report")
# What the records of a collection have in common may stand at the collection alone.
COMMON = ("measured_at", "plan", "server", "client_machine", "client_versions")

Record = dict[str, Any]


def read_loads(paths: Iterable[Path]) -> list[Record]:
    """All load records of the files, in order, each with a label that no other has.

    Raises:
        RecordError: a file cannot be read, is no record of ours, or one of a newer version.
    """
    return flatten_all((read_record(path), path.stem) for path in paths)


def flatten_all(records: Iterable[tuple[Record, str]]) -> list[Record]:
    """The load records of several records, each with what it is called without a label; labels are made to differ.

    A record may be one that was just made, as `--json` writes it.
    """
    found = [load for record, name in records for load in flatten(_upgrade(record), name)]
    for load in _same_labels(found):
        series = load["series"]["label"]
        if not load["label"].startswith(series):
            load["label"] = f"{series}: {load['label']}"
    seen: Counter[str] = Counter()
    for load in _same_labels(found):
        seen[load["label"]] += 1
        load["label"] += f" ({seen[load['label']]})"
    return found


def read_record(path: Path) -> Record:
    """The record of one file, whatever its kind, with the keys of the newest schema that its kind has.

    Raises:
        RecordError: the file cannot be read, is no record of ours, or one of a newer version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}); give a file that --json wrote") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is not JSON; give a file that --json of `tritonclip bench` wrote") from None
    _check(path, record)
    return _upgrade(record)


def flatten(record: Record, name: str) -> list[Record]:
    """The load records in `record` (of `read_record`), which are new objects.

    Each has a `label` (its own, and that of what it stands in; else `name`) and `series`, {"kind", "label", "broken",
    "warnings"}, of the record that it came from (of a comparison "ratios" too): the points of one curve share it. A
    trial of an SLO search becomes a load record of what was kept of it, with `trial`, {"verdict", "reason"}.

    Args:
        name: what a record without a label is called.
    """
    title = record["label"] or name
    notes = record.get("notes", record.get("warnings", []))
    series = {"kind": record["kind"], "label": title, "broken": record.get("broken"), "warnings": notes}
    if record["kind"] == "baselines":
        series["ratios"] = record.get("ratios")
    if record["kind"] == "load":
        return [{"series": series, **record, "label": title}]
    if record["kind"] == "slo":
        return [{**_trial_load(record, trial, title), "series": series} for trial in record["trials"]]
    found = []
    for index, load in enumerate(record["records"], 1):
        own = text(load, "label") or str(index)
        inner = own if record["label"] is None else f"{title}: {own}"
        common = {key: record[key] for key in COMMON if key in record}
        found.append({**common, "series": series, **_upgrade({**load, "kind": "load"}), "label": inner})
    return found


def number(value: object, *keys: str) -> float | None:
    """The finite number at `value[key][key]...`, or None where there is none."""
    value = _at(value, keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # A JSON number may be NaN, or an integer beyond every float.
    return value if abs(value) <= sys.float_info.max else None


def section(value: object, *keys: str) -> Record:
    """The object at `value[key][key]...`; an empty one where there is none."""
    value = _at(value, keys)
    return value if isinstance(value, dict) else {}


def text(value: object, *keys: str) -> str | None:
    """The text at `value[key][key]...`, or None where there is none, or an empty one."""
    value = _at(value, keys)
    return value if isinstance(value, str) and value else None


def _at(value: object, keys: Sequence[str]) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check(path: Path, record: object) -> None:
    """Raise RecordError unless `record` is one that `_upgrade` and `flatten` can take."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(schema, int) or isinstance(schema, bool):
        raise RecordError(f"{path} is no record of a benchmark; give a file that --json of `tritonclip bench` wrote")
    if schema > NEWEST_SCHEMA:
        raise RecordError(
            f"{path} has schema {schema}; this version reads 1 to {NEWEST_SCHEMA}; update tritonclip to read it"
        )
    kind = record.get("kind", _kind_of_old(record))
    if kind not in KINDS:
        raise RecordError(
            f"{path} is a record of {f'the kind {kind!r}' if kind else 'another benchmark'}; "
            f"what can be read is {', '.join(KINDS)}"
        )
    if kind == "slo":
        complete = isinstance(record.get("trials"), list) and all(isinstance(trial, dict) for trial in record["trials"])
    elif kind == "load":
        complete = _is_load(record)
    else:
        loads = record.get("records")
        complete = isinstance(loads, list) and all(map(_is_load, loads))
    if not complete:
        raise RecordError(f"{path} is a record of the kind {kind!r} without its measurements; measure it again")


def _is_load(record: object) -> bool:
    if not isinstance(record, dict):
        return False
    runs, repeats = [record.get("results")], record.get("repeats")
    if repeats is not None:
        runs += repeats if isinstance(repeats, list) and repeats else [None]
    return all(isinstance(run, dict) and isinstance(run.get("total"), dict) for run in runs)


def _kind_of_old(record: Record) -> str:
    # Schema 1 named no kind: an SLO search was the one with an objective.
    return "slo" if "objective" in record else "load" if "results" in record else ""


def _upgrade(record: Record) -> Record:
    kind = record.get("kind", _kind_of_old(record))
    defaults: Record = {"cost": None, "warnings": [], "broken": None}
    if kind == "load":
        defaults |= {"repeats": [record["results"]], "spread": None}
    given = {key: value for key, value in record.items() if value is not None}
    return {**record, **defaults, **given, "kind": kind, "label": text(record, "label")}


def _trial_load(record: Record, trial: Record, title: str) -> Record:
    """What was kept of one rate of an SLO search, as a load record."""
    times = {"p99": trial["p99_ms"]} if number(trial, "p99_ms") is not None else None
    total = {"requests_per_s": trial.get("answered"), "items_per_s": trial.get("items_per_s"), "latency_ms": times}
    few = {"total": total, "open_loop": {"offered_per_s": trial.get("offered")}, "broken": None}
    results = trial["results"] if section(trial, "results", "total") else few
    plan = {**section(record, "plan"), "rate": trial.get("rate")}
    rate = number(trial, "rate")
    return {
        **{key: record[key] for key in COMMON if key in record},
        "schema": NEWEST_SCHEMA,
        "kind": "load",
        "plan": plan,
        "spread": None,
        "broken": text(results, "broken"),
        "label": title if rate is None else f"{title}: {rate:.1f} requests/s",
        "results": results,
        "repeats": [results],
        "warnings": [],
        "cost": _trial_cost(record, trial),
        "trial": {"verdict": trial.get("verdict"), "reason": trial.get("reason")},
    }


def _trial_cost(record: Record, trial: Record) -> Record | None:
    """The search tells the cost at the rate that was sustained; another rate's is in proportion."""
    dollars = number(record, "cost", "dollars_per_million")
    best, items = number(record, "sustained", "items_per_s"), number(trial, "items_per_s")
    if not dollars or not best or not items:
        return None
    price = {key: record["cost"][key] for key in ("item", "price") if key in record["cost"]}
    return {"dollars_per_million": dollars * best / items, **price}


def _same_labels(loads: Sequence[Record]) -> list[Record]:
    times = Counter(load["label"] for load in loads)
    return [load for load in loads if times[load["label"]] > 1]
