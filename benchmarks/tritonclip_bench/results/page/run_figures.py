"""The figures of one run: where its time went, how long requests took, and how that went over time."""

from __future__ import annotations

from tritonclip_bench.records import Record, number, section
from tritonclip_bench.results.page import charts
from tritonclip_bench.results.page.numbers import figure
from tritonclip_bench.results.page.tables import Figure, draw_figure, table
from tritonclip_bench.server.pipeline import place

# Name, key in the record and class of each part of a bar.
PARTS = (
    ("queue", "queue_ms", "s1"),
    ("input", "input_ms", "s2"),
    ("compute", "compute_ms", "s3"),
    ("output", "output_ms", "s4"),
)
CLIENT_PARTS = (("prepare", "prepare_ms", "s5"), ("serialise", "serialise_ms", "s6"))
NETWORK = ("network and waiting", "s7")
ENTRY_POINTS = ("embed_image", "embed_text", "clip")


def distribution(load: Record, name: str) -> Figure | None:
    """Response times of the median run; None where the record has no bins."""
    bins = section(load, "results", "total", "distribution")
    edges, counts = _numbers(bins.get("edges_ms")), _numbers(bins.get("counts"))
    if len(edges) != len(counts) + 1 or not any(count > 0 for count in counts) or edges[0] <= 0:
        return None
    times = section(load, "results", "total", "latency_ms")
    marks = [(key, value) for key in ("p50", "p95", "p99") if (value := number(times, key)) is not None]
    told = [(key, number(times, key)) for key in ("mean", "p50", "p95", "p99", "max")]
    filled = [(low, high, count) for low, high, count in zip(edges, edges[1:], counts, strict=False) if count > 0]
    return draw_figure(
        f"{name}-distribution",
        "Response times",
        ", ".join(f"{key} {figure(value)} ms" for key, value in told if value is not None) + ".",
        lambda width: charts.distribution(width, edges, counts, marks),
        table(
            [
                ("from, ms", [low for low, _, _ in filled]),
                ("to, ms", [high for _, high, _ in filled]),
                ("requests", [count for *_, count in filled]),
            ]
        ),
    )


def timeline(load: Record, name: str) -> Figure | None:
    """Due, answered and failed requests of every second; None where the record does not tell."""
    told = section(load, "results", "timeline")
    seconds = _numbers(told.get("second"))
    if len(seconds) < 2:
        return None
    rates = {key: _aligned(told.get(key), len(seconds)) for key in ("due", "answered", "failed")}
    if number(load, "plan", "rate") is None:
        # In a closed loop a request is due when its user is free.
        rates["due"] = []
    if not any(rates["failed"]):
        # A line of zeros says less than the words below.
        rates["failed"] = []
    kinds = (("due", "c3", "due"), ("answered", "c1", "answered"), ("failed", "c2", "failed"))
    shown = [(key, css, words) for key, css, words in kinds if rates[key]]
    p99 = _aligned(told.get("p99_ms"), len(seconds)) or [None] * len(seconds)
    answered = [value for value in rates["answered"] if value is not None]
    spoken = f"{figure(min(answered))} to {figure(max(answered))} answered a second. " if answered else ""
    return draw_figure(
        f"{name}-timeline",
        "Over time",
        spoken + ("" if rates["failed"] else "None failed."),
        lambda width: charts.timeline(width, seconds, [(css, rates[key]) for key, css, _ in shown], p99),
        table([("second", seconds), *((key, rates[key]) for key, _, _ in shown), ("p99, ms", p99)]),
        [(css, "line", words) for _, css, words in shown],
    )


def stages(load: Record, name: str) -> Figure | None:
    """A stacked bar per stage of the server, and one for the client; None without the server's counts."""
    rows = [*_server_rows(load), *_client_rows(load)]
    if not rows:
        return None
    parts = list(dict.fromkeys((css, part) for _, found in rows for css, part, size in found if size > 0))
    bars = [charts.Bar(stage, f"{figure(sum(size for *_, size in found))} ms", found) for stage, found in rows]
    sizes = [{part: size for _, part, size in found} for _, found in rows]
    measured = section(load, "results", "stages")
    return draw_figure(
        f"{name}-stages",
        "Where the time goes",
        "Mean milliseconds of a request in each stage, as Triton counted them, and what the client adds.",
        lambda width: charts.bars(width, bars, "ms of a request"),
        table(
            [
                ("stage", [stage for stage, _ in rows]),
                *((f"{part}, ms", [size.get(part) for size in sizes]) for _, part in parts),
                ("all, ms", [sum(size.values()) for size in sizes]),
                ("mean batch", [number(measured, stage, "mean_batch") for stage, _ in rows]),
                *(
                    (key, [number(measured, stage, key) for stage, _ in rows])
                    for key in ("cached", "rejected")
                    if any(number(measured, stage, key) for stage, _ in rows)
                ),
            ]
        ),
        [(css, "box", part) for css, part in parts],
    )


def _server_rows(load: Record) -> list[tuple[str, list[tuple[str, str, float]]]]:
    measured = section(load, "results", "stages")
    own = [name for name in measured if not section(measured, name).get("ensemble", name in ENTRY_POINTS)]
    names = sorted(own, key=place)
    rows = [(name, [(css, part, number(measured, name, key) or 0.0) for part, key, css in PARTS]) for name in names]
    return [(name, [(css, part, max(size, 0.0)) for css, part, size in found]) for name, found in rows]


def _client_rows(load: Record) -> list[tuple[str, list[tuple[str, str, float]]]]:
    results, rows = load["results"], []
    own = [(css, part, number(results, "client", key) or 0.0) for part, key, css in CLIENT_PARTS]
    for model, summary in section(results, "by_model").items():
        mean, server = number(summary, "latency_ms", "mean"), number(results, "stages", model, "total_ms")
        if mean is None or server is None:
            continue
        known = number(results, "client", "outside_server_ms", model)
        # A request is made and serialised within its time.
        rest = mean - server - sum(size for *_, size in own) if known is None else known
        rows.append((f"client: {model}", [*own, (NETWORK[1], NETWORK[0], max(rest, 0.0))]))
    return rows


def _numbers(value: object) -> list[float]:
    found = [number(one) for one in value] if isinstance(value, list) else []
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else []


def _aligned(value: object, length: int) -> list[float | None]:
    return [number(one) for one in value] if isinstance(value, list) and len(value) == length else []
