"""From the options of a load test to what it does, for every command that puts load on a server."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from tritonclip_bench.endpoint import ServerInfo, describe
from tritonclip_bench.files import check_writable
from tritonclip_bench.loadrun import LoadPlan
from tritonclip_bench.options import settle_seed
from tritonclip_bench.prices import Price, find_price
from tritonclip_bench.server_metrics import fetch
from tritonclip_bench.workload import check_files, check_limits


def prepare(args: argparse.Namespace) -> tuple[LoadPlan, ServerInfo, Price | None]:
    """What `args` (with `users`, `duration` and `rate`) ask for, refused before anything is sent where it cannot be.

    Raises:
        BenchError: an option, a file or the server's limits do not allow it.
        ServerUnavailableError: nothing ready answers at the address.
    """
    price = find_price(args.instance, args.price_per_hour, datetime.now(timezone.utc).date().isoformat())
    if args.json is not None:
        check_writable(args.json)
    check_files(args)
    server = describe(args.address)
    check_limits(args, server)
    if args.metrics_url is not None:
        fetch(args.metrics_url)
    plan = LoadPlan(
        address=args.address,
        scenario=args.scenario,
        users=args.users,
        duration_s=args.duration,
        warmup_s=args.warmup,
        deadline_s=args.deadline,
        batch_size=args.batch_size,
        labels=args.labels,
        seed=settle_seed(args.seed),
        repeat_texts=args.repeat_texts,
        pictures=args.pictures,
        texts=args.texts,
        rate=args.rate,
        metrics_url=args.metrics_url,
    )
    return plan, server, price
