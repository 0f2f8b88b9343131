"""From the options of a load test to what it does, for every command that puts load on a server."""

from __future__ import annotations

import argparse

from tritonclip_bench.cost.price_table import asked_price
from tritonclip_bench.cost.prices import Price
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_bench.server.metrics import fetch
from tritonclip_bench.traffic.options import settle_seed
from tritonclip_bench.traffic.scenarios import CLASSIFIER_PREFIX
from tritonclip_bench.traffic.shapes import check_processes, parse_shape
from tritonclip_bench.traffic.workload import check


def prepare(args: argparse.Namespace) -> tuple[LoadPlan, ServerInfo, Price | None]:
    """What `args` (with `users`, `duration` and `rate`) ask for, refused before anything is sent where it cannot be.

    Raises:
        BenchError: an option, a file or the server's limits do not allow it.
        ServerUnavailableError: nothing ready answers at the address.
    """
    price = check_options(args)
    server, classifier = check(args, args.address)
    if args.metrics_url is not None:
        fetch(args.metrics_url)
    return make_plan(args, args.address, classifier), server, price


def check_options(args: argparse.Namespace) -> Price | None:
    """Refuse what needs neither files nor a server to be refused; returns the price.

    Raises:
        BenchError: an unknown instance, or a result that cannot be written.
    """
    price = asked_price(args)
    for path in (args.json, args.html, args.samples):
        if path is not None:
            check_writable(path)
    users = most_users(args)
    if args.processes > users:
        raise BenchError(f"--processes {args.processes} exceeds --users {users}; give fewer")
    shape: str | None = getattr(args, "shape", None)
    if shape is not None:
        check_processes(parse_shape(shape), users, args.processes)
    return price


def most_users(args: argparse.Namespace) -> int:
    """How many run at once, or have connections: those of `--users`, or the peak of a shape of users."""
    # Where the rate is looked for, there is none.
    shape: str | None = getattr(args, "shape", None)
    if shape is None or parse_shape(shape).is_open_loop:
        return int(args.users)
    return int(parse_shape(shape).peak)


def make_plan(args: argparse.Namespace, address: str, classifier: str) -> LoadPlan:
    """The load that `args` (with `users`, `duration` and `rate`) ask for, on the server at `address`.

    Args:
        classifier: the model that `classify` calls; empty where nothing does.
    """
    return LoadPlan(
        address=address,
        scenario="mixed" if args.mix else args.scenario,
        users=most_users(args),
        duration_s=args.duration,
        warmup_s=args.warmup,
        deadline_s=args.deadline,
        batch_size=args.batch_size,
        labels=args.labels,
        seed=settle_seed(args.seed),
        repeat_texts=args.repeat_texts,
        images=args.images,
        texts=args.texts,
        rate=args.rate,
        metrics_url=args.metrics_url,
        image_set=args.image_set,
        text_lengths=args.text_lengths,
        shape=getattr(args, "shape", None),
        mix=args.mix,
        classifier=classifier.removeprefix(CLASSIFIER_PREFIX) or None,
        processes=args.processes,
        samples=args.samples,
    )
