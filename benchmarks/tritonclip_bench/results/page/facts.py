"""What single load records say, read with care: an old or a partial record lacks things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tritonclip_bench.cost import dollars
from tritonclip_bench.cost.prices import Price, price_name
from tritonclip_bench.errors import PriceError
from tritonclip_bench.records import Record, number, section, text
from tritonclip_bench.results.page.numbers import NOTHING, figure, plus_minus, share
from tritonclip_bench.results.spread import Spread, spread, whole_runs
from tritonclip_bench.traffic.scenarios import SCENARIOS

ITEMS_PER_MILLION = 1e6
# The side of a comparison that is not a baseline.
OURS = "tritonclip"


def item(load: Record) -> str:
    """What is counted, in the plural."""
    scenario = SCENARIOS.get(text(load, "plan", "scenario") or "")
    return text(load, "cost", "item") or (scenario.item if scenario else "items")


def throughput(load: Record) -> Spread | None:
    """Items a second over the whole repeats."""
    return _spread(load, "total", "items_per_s")


def latency(load: Record, name: str) -> Spread | None:
    """`name`, such as p99, in milliseconds, over the whole repeats."""
    return _spread(load, "total", "latency_ms", name)


def _spread(load: Record, *keys: str) -> Spread | None:
    values = [value for results in whole_runs(load["repeats"]) if (value := number(results, *keys)) is not None]
    return spread(values) if values else None


def within(found: Spread | None) -> str:
    """A mean with the half-width of its interval, where it is known."""
    if found is None:
        return NOTHING
    return figure(found.mean) if found.half_width is None else " ± ".join(plus_minus(found.mean, found.half_width))


def price_per_hour(load: Record) -> float | None:
    """What the server costs an hour, in `currency`."""
    return number(load, "cost", "price", "price_per_hour")


def currency(load: Record) -> str:
    """ISO 4217."""
    return text(load, "cost", "price", "currency") or text(load, "cost", "currency") or "USD"


def cost_per_million(load: Record) -> float | None:
    """What a million items cost, at the throughput of the median run."""
    found = number(load, "cost", "dollars_per_million")
    return found if found and found > 0 else None


def cost_interval(load: Record) -> tuple[float, float | None] | None:
    """The ends of the 95 % interval of that cost; the upper one is None where the throughput may be 0."""
    found = section(load, "cost", "spread").get("dollars_per_million")
    ends = [number(end) for end in found] if isinstance(found, list) and len(found) == 2 else [None]
    return None if ends[0] is None else (ends[0], ends[1])


def items_per_unit(load: Record) -> float | None:
    """Items for one dollar, or one unit of another currency."""
    cost = cost_per_million(load)
    return ITEMS_PER_MILLION / cost if cost else None


def is_sound(load: Record) -> bool:
    """Whether the run may stand for what the server can do: whole, answered, and not a failed trial."""
    verdict = text(load, "trial", "verdict")
    found = throughput(load)
    return bool(not load["broken"] and verdict in (None, "sustained") and found and found.mean > 0)


def best(loads: Sequence[Record]) -> Record:
    """The record that heads the page: the greatest throughput.

    Of a comparison ours; and as far as there are any, of sound runs, without failures, of the first one's items (texts
    are faster than images), with a price.
    """
    left = [load for load in loads if load["series"]["kind"] != "baselines" or load.get("side") == OURS] or loads[:1]
    first = item(left[0])
    wishes: tuple[Callable[[Record], bool], ...] = (
        is_sound,
        lambda load: not number(load, "results", "total", "failures"),
        lambda load: item(load) == first,
        lambda load: cost_per_million(load) is not None,
    )
    for wish in wishes:
        left = [load for load in left if wish(load)] or left
    return max(left, key=lambda load: found.mean if (found := throughput(load)) else 0.0)


def offered(load: Record) -> str:
    """How the load was put on, such as "8 users" or "200 requests/s"."""
    rate, users = number(load, "plan", "rate"), number(load, "plan", "users")
    if rate is not None:
        return f"{figure(rate)} requests/s"
    return NOTHING if users is None else f"{users:g} user{'s' if users != 1 else ''}"


def flags(load: Record) -> list[str]:
    """What makes a run's figures doubtful, in a word each."""
    verdict = text(load, "trial", "verdict")
    found = ["broken"] if load["broken"] else []
    if verdict is not None and verdict not in ("sustained", *found):
        found.append({"generator": "the generator was the limit"}.get(verdict, verdict))
    if any(number(results, "total", "failures") for results in load["repeats"]):
        found.append("failures")
    return found


def warnings(loads: Sequence[Record]) -> list[str]:
    """Every warning once, with the labels that it is about where not all have it."""
    about: dict[str, list[Record]] = {}
    for load in loads:
        notes = [*_texts(load["warnings"]), *_texts(load["series"].get("warnings"))]
        notes += [*_texts(section(load, "cost").get("warnings")), *_texts([text(load, "cost", "priced_as_if")])]
        if (stale := text(load, "cost", "price", "stale")) and not any(stale in note for note in notes):
            notes.append(f"the price is doubtful: {stale}")
        for note in dict.fromkeys(notes):
            about.setdefault(note, []).append(load)
    return [note if len(who) == len(loads) else f"{_whose(who, loads)}: {note}" for note, who in about.items()]


def broken(loads: Sequence[Record]) -> list[str]:
    """Why runs, or searches, are not whole; empty where all are."""
    found: dict[str, None] = {}
    for load in loads:
        reasons = [text(results, "broken") for results in load["repeats"]]
        for reason in (text(load, "broken"), *reasons):
            if reason:
                found[f"{load['label']}: {reason}"] = None
        if (reason := text(load, "series", "broken")) and not any(reason in one for one in found):
            found[f"{load['series']['label']}: {reason}"] = None
    return list(found)


def failures(loads: Sequence[Record]) -> list[str]:
    """Reasons of failed requests with their numbers, the most frequent first."""
    counted: dict[str, float] = {}
    for load in loads:
        for results in load["repeats"]:
            for reason, count in section(results, "total", "failure_reasons").items():
                counted[reason] = counted.get(reason, 0) + (number(count) or 0)
    ordered = sorted(counted.items(), key=lambda pair: -pair[1])
    return [f"{count:,.0f} failed: {reason}" for reason, count in ordered[:5]]


def machine(load: Record) -> list[tuple[str, str]]:
    """The machine of the load generator, and of the server where it is the same."""
    where, found = section(load, "client_machine"), []
    if name := text(where, "cpu"):
        found.append(("CPU", name))
    cores, usable = number(where, "cores"), number(where, "cores_usable")
    if cores is not None:
        found.append(("Cores", f"{cores:g}" if usable in (None, cores) else f"{cores:g}, of which {usable:g} usable"))
    if (memory := number(where, "memory_gib")) is not None:
        found.append(("Memory", f"{figure(memory)} GiB"))
    if system := text(where, "system"):
        found.append(("System", system))
    for gpu in _list(load["results"].get("gpus")):
        found.append(("GPU", text(gpu, "name") or f"number {number(gpu, 'index') or 0:g}"))
    same = section(load, "server").get("same_machine_as_client")
    if isinstance(same, bool):
        found.append(("Server", "on this machine, beside the load generator" if same else "on another machine"))
    return found


def model(load: Record) -> list[tuple[str, str]]:
    """What was served."""
    server, spec = section(load, "server"), section(load, "server", "spec")
    named = (("Name", "name"), ("Architecture", "architecture"), ("Precision", "precision"), ("Runtime", "runtime"))
    found = [(name, given) for name, key in named if (given := text(spec, key))]
    if (dim := number(spec, "embedding_dim")) is not None:
        found.append(("Embedding", f"{dim:g} values"))
    if software := text(server, "software"):
        found.append(("Software", software))
    if triton := text(server, "triton"):
        found.append(("Triton", triton))
    if fingerprint := text(server, "fingerprint"):
        found.append(("Fingerprint", fingerprint))
    return found


def settings(load: Record) -> list[tuple[str, str]]:
    """How the load was made: the plan, in words."""
    plan = section(load, "plan")
    found = [("Scenario", text(plan, "scenario") or NOTHING)]
    if (rate := number(plan, "rate")) is not None:
        found.append(("Open loop", f"{figure(rate)} requests/s over {number(plan, 'users') or 0:g} connections"))
    elif (users := number(plan, "users")) is not None:
        found.append(("Closed loop", f"{users:g} users, one request in flight each"))
    for name, key, unit in (
        *(("Batch", "batch_size", "in a request"), ("Measured", "duration_s", "s"), ("Warm-up", "warmup_s", "s")),
        *(("Deadline", "deadline_s", "s"), ("Seed", "seed", "")),
    ):
        if (value := number(plan, key)) is not None:
            found.append((name, f"{value:g} {unit}".strip() if key != "seed" else f"{value:.0f}"))
    found.append(("Runs", str(len(load["repeats"]))))
    images = section(plan, "images")
    if (count := number(images, "count")) is not None:
        size = number(images, "mean_bytes")
        kind = text(images, "source") or ""
        found.append(("Images", f"{count:g} {kind}" + (f", {size / 1024:,.0f} KiB on average" if size else "")))
    return found


def versions(load: Record) -> list[tuple[str, str]]:
    """Packages of the load generator."""
    return [(name, version) for name, version in section(load, "client_versions").items() if isinstance(version, str)]


def resources(load: Record) -> list[tuple[str, str]]:
    """What the run used of the machine."""
    results, found = load["results"], []
    for name, key in (("Load generator", "client_cpu_cores"), ("Server", "server_cpu_cores")):
        if (cores := number(results, key)) is not None:
            found.append((name, f"{cores:.2f} cores"))
    if (busy := number(results, "machine_cpu_share")) is not None:
        found.append(("Load generator's machine", f"{share(busy)} busy"))
    if (busy := number(results, "server_machine_cpu")) is not None:
        found.append(("Server's machine", f"{share(busy)} busy"))
    for gpu in _list(results.get("gpus")):
        use, memory, power = (number(gpu, key) for key in ("utilization", "memory_bytes", "power_w"))
        parts = [f"{share(use)} busy"] if use is not None else []
        parts += [f"{memory / 2**30:.1f} GiB"] if memory is not None else []
        parts += [f"{figure(power)} W"] if power is not None else []
        energy = number(gpu, "joules_per_item")
        parts += [f"{figure(energy)} J an item"] if energy is not None else []
        found.append((text(gpu, "name") or f"GPU {number(gpu, 'index') or 0:g}", ", ".join(parts) or NOTHING))
    if rejected := number(results, "rejected"):
        found.append(("Turned away by Triton", f"{rejected:,.0f} requests"))
    return found


def hourly(load: Record) -> str:
    """The price of an hour, as it was given."""
    try:
        return dollars.hourly(Price.from_dict(section(load, "cost", "price")))
    except PriceError:
        return NOTHING


def instance(load: Record) -> str | None:
    """What `--instance` calls the price; None where it came without a machine."""
    given = section(load, "cost", "price")
    return price_name(text(given, "instance"), text(given, "kind"))


def price(load: Record) -> str:
    """Whose price it is: amount an hour, instance, kind and date."""
    if price_per_hour(load) is None:
        return "no price was given"
    given = section(load, "cost", "price")
    what = text(given, "instance")
    told = [f"{hourly(load)} an hour{f' for {what}' if what else ''}", text(given, "kind"), text(given, "date")]
    return ", ".join(filter(None, told))


def _texts(value: object) -> list[str]:
    return [one for one in _list(value) if isinstance(one, str)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whose(some: Sequence[Record], loads: Sequence[Record]) -> str:
    """The series that `some` are all of, or their labels."""
    series = some[0]["series"]
    every = [load["label"] for load in loads if load["series"] == series]
    if len(some) > 1 and every == [load["label"] for load in some]:
        return str(series["label"])
    names = [load["label"] for load in some]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
