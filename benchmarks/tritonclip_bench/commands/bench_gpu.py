"""`tritonclip bench gpu`: what the encoders reach on a GPU, and what the GPU could do."""

from __future__ import annotations

import argparse
from pathlib import Path

from tritonclip_bench.cli_types import count, positive_seconds
from tritonclip_export.commands.export import PRECISIONS

HELP = "measure the encoders on a GPU (or this CPU): items a second, share of the device's peak, roofline, served load"
BATCHES = "1,2,4,8,16,32,64,128,256"
USERS = "1,8,32,64"
RUNTIMES = ("pytorch", "onnxruntime", "onnxruntime-copies", "tensorrt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "architecture",
        nargs="?",
        metavar="ARCHITECTURE",
        help="such as ViT-L-14: random weights; or a checkpoint's folder",
    )
    what.add_argument("--repository", type=Path, metavar="DIR", help="what `tritonclip export` wrote")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of an ARCHITECTURE (fp16)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--batches", type=_numbers, default=BATCHES, metavar="N,N", help="default: %(default)s")
    parser.add_argument(
        "--runtimes", type=_runtimes, default=RUNTIMES, metavar="NAME,NAME", help=f"default: {','.join(RUNTIMES)}"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; takes minutes")
    parser.add_argument("--rounds", type=count("rounds"), default=5, help="the median of so many counts (5)")
    parser.add_argument("--seconds", type=_seconds, default=0.2, metavar="S", help="of one round (0.2)")
    parser.add_argument("--serve", action="store_true", help="start the embedded tritonserver too, and put load on it")
    parser.add_argument("--users", type=_numbers, default=USERS, metavar="N,N", help="of --serve (%(default)s)")
    parser.add_argument("--duration", type=positive_seconds, default=15, metavar="TIME", help="of each of them (15s)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: named by the device, in benchmarks/results/"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and report; see `tritonclip_bench.gpu.run`."""
    from tritonclip_bench.gpu.run import Plan, run
    from tritonclip_bench.gpu.series import Effort
    from tritonclip_bench.gpu.served import Load
    from tritonclip_export.engine.tensorrt_api import TensorRT

    return run(
        Plan(
            device=args.device,
            repository=args.repository,
            architecture=args.architecture,
            precision=PRECISIONS[args.precision],
            runtimes=[*args.runtimes, *(["pytorch-compiled"] if args.compile else [])],
            effort=Effort(args.batches, args.rounds, args.seconds),
            load=Load(args.users, args.duration) if args.serve else None,
            json=args.json,
        ),
        TensorRT,
    )


def _numbers(text: str) -> list[int]:
    parse = count("given")
    return sorted({parse(part) for part in text.split(",")})


def _runtimes(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in RUNTIMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} given; allowed: {', '.join(RUNTIMES)}")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of a round; give seconds, more than 0 and at most 60")
    return seconds
