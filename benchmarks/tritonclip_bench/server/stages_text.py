"""The stages for a terminal: a table, and one stacked bar for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tritonclip_bench.server.endpoint import ENTRY_POINTS
from tritonclip_bench.server.pipeline import place
from tritonclip_bench.server.stages import PARTS
from tritonclip_client.table import format_table

WIDTH = 40
COLUMNS = ("stage", "requests", "mean batch", *(part.replace("_", " ") for part in PARTS.values()))
COLUMNS += ("all ms", "cached", "rejected")
OUTSIDE = "outside_ms"
LEGEND = {"queue_ms": "queue", "input_ms": "input", "compute_ms": "compute", "output_ms": "output", OUTSIDE: "client"}
BLOCKS = dict(zip(LEGEND, "░▒█▓▞", strict=True))
ASCII = dict(zip(LEGEND, ".-#=~", strict=True))

Stages = Mapping[str, Mapping[str, float]]


def render(results: Mapping[str, Any], encoding: str | None) -> str:
    """The stages of `results` as a table, as bars, and what else is known of the server.

    Args:
        encoding: of where it is written to; other than UTF-8 gets bars of ASCII.
    """
    measured = _composing(results["stages"])
    marks = BLOCKS if (encoding or "").lower().replace("-", "") == "utf8" else ASCII
    parts = [format_table(COLUMNS, [_row(name, stage) for name, stage in measured.items()])]
    parts += ["", *_bars(measured, results.get("client") or {}, marks), "", *_entry_lines(results)]
    parts += [*_image_line(measured), *server_lines(results)]
    return "\n".join(parts)


def bar(parts: Mapping[str, float], longest: float, marks: Mapping[str, str]) -> str:
    """Of each part in `parts` its share of `longest`, in characters of WIDTH; the ends are rounded, not the parts."""
    drawn, end = "", 0.0
    for name, value in parts.items():
        end += max(value, 0.0)
        drawn += marks[name] * (round(end / longest * WIDTH) - len(drawn)) if longest else ""
    return drawn


def server_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """What processors and GPUs did meanwhile, as far as it is known."""
    if by_process := results.get("server_cpu"):
        told = ", ".join(f"{name} {cores:.2f}" for name, cores in sorted(by_process.items(), key=lambda one: -one[1]))
        yield f"server: {results['server_cpu_cores']:.2f} cores: {told}"
    elif (share := results.get("server_machine_cpu")) is not None:
        yield f"server: its machine's cores {share:.0%} busy"
    if results.get("metrics") is False:
        yield "no metrics of this server were found (--metrics-url): every failure counts as rejected"
    for gpu in results.get("gpus") or ():
        yield f"GPU {gpu['index']}: " + ", ".join(_gpu(gpu))


def _gpu(gpu: Mapping[str, float]) -> Iterator[str]:
    formats = {"utilization": "{:.0%} busy", "power_w": "{:.0f} W", "joules_per_item": "{:.3g} J an item"}
    yield from (text.format(gpu[key]) for key, text in formats.items() if key in gpu)
    if "memory_bytes" in gpu:
        yield f"{gpu['memory_bytes'] / 2**30:.1f} GiB"


def _composing(measured: Stages) -> Stages:
    """Without the ensembles, whose parts are sums over these, in the order of the pipeline."""
    names = [name for name, stage in measured.items() if not stage.get("ensemble", name in ENTRY_POINTS)]
    return {name: measured[name] for name in sorted(names, key=place)}


def _row(name: str, stage: Mapping[str, float]) -> Sequence[str]:
    times = (f"{stage[key]:.2f}" for key in (*PARTS.values(), "total_ms"))
    counts = (f"{stage['cached']:.0f}", f"{stage['rejected']:.0f}" if "rejected" in stage else "-")
    return (name, f"{stage['requests']:.0f}", f"{stage['mean_batch']:.1f}", *times, *counts)


def _bars(measured: Stages, client: Mapping[str, Any], marks: Mapping[str, str]) -> list[str]:
    stacks = {name: {part: stage[part] for part in PARTS.values()} for name, stage in measured.items()}
    for key, spent_ms in client.items():
        if key.endswith("_ms") and isinstance(spent_ms, (int, float)):
            stacks[f"client: {key.removesuffix('_ms')}"] = {OUTSIDE: spent_ms}
    for name, spent_ms in client.get("outside_server_ms", {}).items():
        stacks[f"outside the server: {name}"] = {OUTSIDE: spent_ms}
    lengths = {name: sum(max(value, 0.0) for value in parts.values()) for name, parts in stacks.items()}
    longest = max(lengths.values(), default=0.0)
    rows = [(name, bar(parts, longest, marks), f"{lengths[name]:.2f}") for name, parts in stacks.items()]
    legend = "  ".join(f"{marks[key]} {meaning}" for key, meaning in LEGEND.items())
    return [format_table(("ms of a request", legend, "ms"), rows)]


def _entry_lines(results: Mapping[str, Any]) -> Iterator[str]:
    for name, summary in results["by_model"].items():
        if name in results["stages"] and summary["latency_ms"]:
            waited_ms = summary["latency_ms"]["mean"]
            served_ms = results["stages"][name]["total_ms"]
            yield f"{name}: {served_ms:.1f} ms in the server, {waited_ms:.1f} ms for clients"


def _image_line(measured: Stages) -> Iterator[str]:
    for name, stage in measured.items():
        if "decode_ms_per_item" in stage:
            decode_ms, resize_ms = stage["decode_ms_per_item"], stage["resize_ms_per_item"]
            yield f"{name}: {decode_ms:.2f} ms to decode an image, {resize_ms:.2f} ms to resize it"
