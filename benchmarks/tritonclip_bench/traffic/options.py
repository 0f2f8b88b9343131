"""The options that `tritonclip bench` and plain `locust` share."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from tritonclip_bench.cli_types import count, positive_number, positive_seconds, seconds
from tritonclip_bench.traffic.captions import TEXT_LENGTHS
from tritonclip_bench.traffic.image_sets import IMAGE_SETS
from tritonclip_bench.traffic.scenarios import SCENARIOS, mix, scenario_name
from tritonclip_bench.traffic.shapes import FORMS, shape
from tritonclip_client.options import DEFAULT_ADDRESS

DEADLINE_S = 30


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """What is sent, how it is cut into requests, and when measuring begins."""
    scenarios = "; ".join(f"{name}: {scenario.help}" for name, scenario in SCENARIOS.items())
    parser.add_argument("--scenario", type=scenario_name, choices=tuple(SCENARIOS), default="image", help=scenarios)
    parser.add_argument(
        "--mix", type=mix, metavar="CALL=WEIGHT,...", help="own weights of `mixed`, such as embed_image=7,classify=1"
    )
    parser.add_argument(
        "--classifier", metavar="NAME", help="what `classify` asks; default: the only classifier of the server"
    )
    parser.add_argument("--batch-size", type=count("items"), default=1, help="images or texts in a request (default 1)")
    parser.add_argument("--labels", type=count("labels"), default=10, help="texts in a request of `clip`")
    _add_source_arguments(parser)
    parser.add_argument(
        "--repeat-texts",
        action="store_true",
        help="send the same texts again and again, so that the server's response cache answers",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="where the unique texts start; default: somewhere new, so that no cache knows them",
    )
    parser.add_argument(
        "--warmup", type=seconds, default=3, metavar="TIME", help="not measured, after all users run (3s)"
    )
    parser.add_argument(
        "--metrics-url",
        metavar="URL",
        help="Triton's Prometheus metrics; default: http://HOST:8002/metrics, or the port that the server was started "
        "with where it runs on this machine, and none where nothing is found there",
    )
    parser.add_argument(
        "--deadline",
        type=positive_seconds,
        default=DEADLINE_S,
        metavar="TIME",
        help=f"a request that takes longer has failed (default {DEADLINE_S}s)",
    )


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images and texts."""
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="send the images of this folder; default: drawn JPEGs"
    )
    sets = "; ".join(f"{name}: {declared.help}" for name, declared in IMAGE_SETS.items())
    parser.add_argument("--image-set", choices=tuple(IMAGE_SETS), help=f"JPEGs to draw (default photos). {sets}")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="send the lines of this file; default: captions")
    parser.add_argument(
        "--text-lengths",
        choices=tuple(TEXT_LENGTHS),
        help="texts to make: captions of 10 to 14 tokens (default), short: queries of 1 to 4 words, long: half of the "
        "context to beyond it, mixed: 5, 4 and 1 of ten",
    )


def add_rate_argument(parser: argparse.ArgumentParser) -> None:
    """An open loop in place of the closed one, and loads that change."""
    # It takes its numbers as the options here do.
    parser.add_argument(
        "--rate",
        type=positive_number,
        metavar="R",
        help="open loop: R requests a second arrive at random, answered or not, on the connections of --users; a "
        "request's time counts from when it was due. Default: every user waits for its answer",
    )
    parser.add_argument("--shape", type=shape, help=f"a load that changes over the measured time: {FORMS}")


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """The server, the workload, the price and where the result goes."""
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="the server's gRPC address, HOST:PORT")
    add_workload_arguments(parser)
    add_result_arguments(parser)


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """The price, where the result goes, and what the load generator is spread over."""
    add_price_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the result as one page here")
    add_samples_argument(parser)
    parser.add_argument(
        "--processes", type=count("processes"), default=1, help="spread the load generator over processes (1)"
    )


def add_samples_argument(parser: argparse.ArgumentParser) -> None:
    """Where the raw samples go."""
    parser.add_argument(
        "--samples", type=Path, metavar="FILE.csv.gz", help="write every request: when due, model, items, ms, outcome"
    )


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """What an hour of the whole server costs."""
    parser.add_argument("--price-per-hour", type=float, metavar="X", help="for the whole server, not for one GPU")
    parser.add_argument(
        "--currency",
        metavar="CODE",
        help="of --price-per-hour, such as EUR; nothing is converted (the instance's, or USD)",
    )
    parser.add_argument(
        "--instance",
        metavar="NAME",
        help="take the price from the dated table; `tritonclip bench cost --list` shows it",
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own prices, beside the table's; docs/cost.md")


def add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    """Only for the locust process: where its results go and when it stops by itself."""
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was measured as JSON")
    add_samples_argument(parser)
    parser.add_argument("--measure", type=positive_seconds, metavar="TIME", help="stop when this long was measured")
    parser.add_argument("--progress", action="store_true", help="a line with the current rate now and then")


def settle_seed(seed: int | None) -> int:
    """The seed that was given, or a new one."""
    return secrets.randbelow(2**31) if seed is None else seed
