"""Fuzz one parser for some seconds, and print what came of it as one line of JSON; exit status 1 where it failed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

from tritonclip_chaos.errors import ChaosError
from tritonclip_chaos.fuzzing.limits import MOST_CPU_S
from tritonclip_chaos.fuzzing.targets import TARGETS, Parse

MOST_KEPT = 5
# What libFuzzer writes is of no use to anybody but itself.
_QUIET = ["-verbosity=0", "-print_final_stats=0"]


@dataclass
class Outcome:
    """What fuzzing a target found.

    Attributes:
        executions: inputs that were tried.
        accepted: of these, what was read.
        failures: what ended in another error than the documented ones, which all others ended in.
        slowest_s: CPU time of the slowest input.
        faults: kinds of failures, with the first input of each in hexadecimal.
    """

    target: str
    seed: int
    executions: int = 0
    accepted: int = 0
    failures: int = 0
    slowest_s: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)

    def take(self, parse: Parse, allowed: tuple[type[Exception], ...], data: bytes) -> None:
        """Try one input."""
        self.executions += 1
        begin_s = time.thread_time()
        try:
            parse(data)
        except allowed:
            pass
        except Exception as error:
            self.failures += 1
            self._note(f"{type(error).__name__}: {str(error)[:200]}", type(error).__name__, data)
        else:
            self.accepted += 1
        took_s = time.thread_time() - begin_s
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > MOST_CPU_S:
            self._note(f"slow: {took_s:.1f} s of CPU for {len(data)} bytes", "slow", data)

    def _note(self, told: str, kind: str, data: bytes) -> None:
        known = [one for one in self.faults if one.startswith(kind)]
        if len(known) < 2 and len(self.faults) < MOST_KEPT:
            self.faults.setdefault(told, data[:2000].hex())


def main() -> int:
    """Run the command and return its exit status."""
    args = _arguments()
    try:
        atheris = _atheris()
    except ChaosError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    target = TARGETS[args.target]
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as name:
        folder = Path(name)
        with atheris.instrument_imports(include=list(target.modules)):
            parse, allowed = target.prepare(folder)
        _fuzz(atheris, args, parse, allowed, _write_seeds(folder, target.seeds(args.seed)), target.longest)
    return 0


def _fuzz(
    atheris: ModuleType,
    args: argparse.Namespace,
    parse: Parse,
    allowed: tuple[type[Exception], ...],
    seeds: Path,
    longest: int,
) -> None:
    """Fuzz until the time is over, and end the process: libFuzzer does not return."""
    outcome = Outcome(args.target, args.seed)
    deadline = time.monotonic() + args.seconds

    def one(data: bytes) -> None:
        outcome.take(parse, allowed, data)
        if time.monotonic() >= deadline:
            print(json.dumps(asdict(outcome)), flush=True)
            os._exit(1 if outcome.faults else 0)

    words = [sys.argv[0], *_QUIET, f"-seed={args.seed + 1}", f"-max_len={longest}", str(seeds)]
    atheris.Setup(words, one)
    atheris.Fuzz()


def _write_seeds(folder: Path, seeds: list[bytes]) -> Path:
    into = folder / "seeds"
    into.mkdir()
    for number, seed in enumerate(seeds):
        (into / f"{number:04d}").write_bytes(seed)
    return into


def _atheris() -> ModuleType:
    try:
        import atheris
    except ImportError as error:
        raise ChaosError(
            f"fuzzing needs the Python package atheris ({error}); it is in the extra `dev`, for Python 3.11 and later"
        ) from None
    module: ModuleType = atheris
    return module


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tritonclip_chaos.fuzzing", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS), metavar="TARGET", help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (%(default)g)")
    parser.add_argument("--seed", type=int, default=12, help="of what is tried first (%(default)d)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
