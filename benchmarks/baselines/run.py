"""tritonclip against what people write or run instead, in one run on one machine.

    python benchmarks/baselines/run.py

Sides: tritonclip on a real tritonserver; open_clip in PyTorch behind FastAPI, without and with joining of requests;
infinity; ONNX Runtime in one process with open_clip's transform, and with tritonclip's own (the ceiling). All have the
same weights in float32 and get the same images and texts. First their answers are compared with tritonclip's. Then
every round measures all sides pattern by pattern, and every other round backwards, so that a machine that grows slower
or faster favors no side. All servers run all the time, and one is asked at a time. Load generator and server share the
cores. docs/baselines.md says more.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# So that it runs as a script too.
sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines import answers, environments, records, result
from baselines.environments import SideError
from baselines.in_process import Ceiling, OpenClipTransform
from baselines.material import Material, prepare
from baselines.patterns import (
    BASELINES,
    IN_PROCESS,
    OURS,
    PATTERNS,
    SCENARIOS,
    Pattern,
)
from baselines.schedule import QUIET_SHARE, schedule, settle
from baselines.sides import Load, Side, Tritonclip, fastapi, infinity
from tritonclip_bench.cli_types import count
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.load.loadrun import INTERRUPTED, was_interrupted
from tritonclip_bench.machine import cpu_slug
from tritonclip_bench.server.endpoint import ServerInfo, describe
from tritonclip_client.errors import ClipError
from tritonclip_client.main import EXIT_INTERRUPTED
from tritonclip_serve.errors import ServeError

RESULTS = Path(__file__).parents[1] / "results"
WORK = environments.CHECKOUT / "work" / "baselines"
JOINED = 16
WARMUP_S = 1
QUICK = {"rounds": 1, "seconds": 2, "patterns": (PATTERNS[0], PATTERNS[1])}
FAILURES = (BenchError, ClipError, ServeError)


@dataclass
class Comparison:
    """A run: what is measured, and what was found so far."""

    args: argparse.Namespace
    material: Material
    server: ServerInfo | None = None
    sides: dict[str, Side] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[result.Key, dict[str, Any]] = field(default_factory=dict)
    loads: dict[result.Key, Load] = field(default_factory=dict)
    idle_share: float | None = None
    broken: str | None = None

    def start(self, open_sides: ExitStack) -> None:
        """Start all sides and compare what they answer; one that cannot be had is told, and left out.

        Raises:
            BenchError, ServeError: tritonclip itself does not serve.
        """
        ours = Tritonclip(self.material)
        open_sides.enter_context(ours)
        self.server = describe(ours.address)
        dim = self.server.spec.embedding_dim
        embedded = answers.embed_probes(ours)
        self._take(OURS, ours)
        for name in self.args.sides:
            say(f"starting {name}")
            try:
                side = FACTORIES[name](self.material, self.args.work, dim)
                self.told[name] = {"what": side.what, "command": side.command, "versions": side.versions}
                open_sides.enter_context(side)
                self.answers[name] = answers.compare(embedded, answers.embed_probes(side))
                self._take(name, side)
            except (*FAILURES, OSError) as error:
                self._leave_out(name, error)
        self.idle_share = psutil.cpu_percent(interval=2.0) / 100

    def measure(self) -> None:
        """All rounds; what was measured is written after each, and after what ends them early."""
        try:
            for number in range(1, self.args.rounds + 1):
                for name, load in schedule(self.args, number):
                    self._measure(name, load, number)
                self.save()
        except KeyboardInterrupt:
            self.broken = f"{INTERRUPTED} (Ctrl-C)"
        except FAILURES as error:
            self.broken = str(error)
        self.save()

    def _measure(self, name: str, load: Load, number: int) -> None:
        if name not in self.sides:
            return
        if not settle():
            say("the machine does not become quiet: the next side pays for what others do")
        try:
            results = self.sides[name].measure(load)
            if was_interrupted(results["broken"]):
                raise KeyboardInterrupt
            if results["broken"]:
                raise SideError(results["broken"])
        except FAILURES as error:
            if name == OURS:
                raise
            self._leave_out(name, error)
            return
        key = (name, load.scenario, load.pattern.name, number)
        self.runs[key], self.loads[key] = results, load
        rate = result.items_per_s(results, name, load.pattern)
        say(f"round {number} of {self.args.rounds}: {load.scenario} {load.pattern.name} {name}: {rate:.1f} a second")

    def _take(self, name: str, side: Side) -> None:
        self.sides[name] = side
        self.told[name] = {"what": side.what, "command": side.command, "versions": side.versions}

    def _leave_out(self, name: str, error: Exception) -> None:
        side = self.sides.pop(name, None)
        if side is not None:
            side.__exit__(None, None, None)
        reason = environments.without(str(error), self.args.work)
        self.told[name] = {**self.told.get(name, {}), "reason": reason}
        say(f"{name} is left out: {reason}")

    def record(self) -> dict[str, Any]:
        """Everything found so far, for JSON."""
        assert self.server is not None
        return records.comparison_record(
            self.args, self.material, self.server, self.told, self.answers, self.runs, self.loads, self.broken
        ) | {"warnings": self._warnings(), "machine_busy_idle": self.idle_share}

    def _warnings(self) -> list[str]:
        found = []
        if self.idle_share is not None and self.idle_share > QUIET_SHARE:
            found.append(
                f"the machine was {self.idle_share:.0%} busy while nobody asked anything; the ratios will not hold"
            )
        # Their latencies tell little of the throughput: those that take longest are not among them.
        few = [
            key
            for key, load in self.loads.items()
            if key[0] not in IN_PROCESS and self.runs[key]["total"]["requests"] < load.pattern.clients
        ]
        if few:
            named = ", ".join(dict.fromkeys(f"{side} {scenario} {pattern}" for side, scenario, pattern, _ in few))
            found.append(f"windows with fewer answers than clients: {named}; give more --seconds")
        return found

    def save(self) -> None:
        """Write what was found so far."""
        if self.server is not None:
            write_json(self.args.json, self.record())


FACTORIES: Mapping[str, Callable[[Material, Path, int], Side]] = {
    "fastapi": lambda material, folder, dim: fastapi(material, folder, dim, 1),
    "fastapi-batching": lambda material, folder, dim: fastapi(material, folder, dim, JOINED),
    "infinity": infinity,
    "onnxruntime": lambda material, folder, dim: OpenClipTransform(material),
    "ceiling": lambda material, folder, dim: Ceiling(material),
}


def say(line: str) -> None:
    """News for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def _several(what: str, allowed: Mapping[str, Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no {what}; allowed: {', '.join(allowed)}")
        return tuple(allowed[name] for name in allowed if name in names)

    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    patterns: dict[str, Pattern] = {pattern.name: pattern for pattern in PATTERNS}
    parser = argparse.ArgumentParser(description="tritonclip against what people write or run instead.")
    parser.add_argument("--rounds", type=count("rounds"), default=3, help="an odd number gives a measured median (3)")
    parser.add_argument("--seconds", type=count("seconds"), default=2, help="measured time, batches twice as long (2)")
    parser.add_argument("--warmup", type=count("seconds"), default=WARMUP_S, help="before each measurement (1)")
    parser.add_argument(
        "--sides",
        type=_several("side", dict(zip(BASELINES, BASELINES, strict=True))),
        default=BASELINES,
        metavar="A,B",
        help=f"beside tritonclip: {', '.join(BASELINES)} (all)",
    )
    parser.add_argument(
        "--patterns",
        type=_several("pattern", patterns),
        default=PATTERNS,
        metavar="A,B",
        help=f"clients x items in a request: {', '.join(patterns)} (all)",
    )
    parser.add_argument(
        "--scenarios",
        type=_several("scenario", dict(zip(SCENARIOS, SCENARIOS, strict=True))),
        default=SCENARIOS,
        metavar="A,B",
        help="image, text (both)",
    )
    parser.add_argument("--quick", action="store_true", help="one round of two patterns: 3 minutes instead of 12")
    parser.add_argument(
        "--model", default="ViT-B-32", help="an architecture, or a checkpoint's directory (%(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="for environments and models, kept for the next run")
    parser.add_argument("--prepare", action="store_true", help="only install, write and export what a run needs")
    default = RESULTS / f"baselines-{cpu_slug()}.json"
    parser.add_argument("--json", type=Path, default=default, help="default: a file of this machine's in results/")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="only print the tables of this result")
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(QUICK)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a side was left out or the run is not whole."""
    args = _arguments(argv)
    # Whoever ends this run ends its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.markdown is not None:
            print(result.render(records.read(args.markdown), markdown=True))
            return 0
        return _run(args)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BenchError) else 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    check_writable(args.json)
    material = prepare(args.model, args.work)
    if args.prepare:
        return _install(args)
    comparison = Comparison(args, material)
    with ExitStack() as open_sides:
        comparison.start(open_sides)
        comparison.measure()
    record = comparison.record()
    print(result.render(record))
    left_out = any("reason" in told for told in record["sides"].values())
    if was_interrupted(record["broken"]):
        return EXIT_INTERRUPTED
    return int(left_out or record["broken"] is not None)


def _install(args: argparse.Namespace) -> int:
    status = 0
    for name, shares in (("fastapi", True), ("infinity", False)):
        try:
            environments.make(name, args.work, shares=shares)
        except SideError as error:
            say(f"{name}: {error}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
