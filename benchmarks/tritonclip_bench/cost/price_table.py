"""Finds the price that a command was asked to count with: the table's, or one that was given."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import replace
from functools import partial
from pathlib import Path

from tritonclip_bench.cost.price_file import PACKAGED, read_prices
from tritonclip_bench.cost.prices import DEFAULT_CURRENCY, Price
from tritonclip_bench.errors import PriceError

LIST_COMMAND = "`tritonclip bench cost --list`"


def price_table(own: Path | None = None) -> dict[str, Price]:
    """The prices that come with the package, by `Price.name`, and those of the user's file, which replace them.

    Raises:
        PriceError: the file is not there, or what stands in it is no price.
    """
    return {**read_prices(PACKAGED), **({} if own is None else read_prices(own))}


def today() -> datetime.date:
    """The day in UTC, so that a result is of the same day everywhere."""
    return datetime.datetime.now(datetime.timezone.utc).date()


def asked_price(args: argparse.Namespace) -> Price | None:
    """What the options of `options.add_price_arguments` ask for.

    Raises:
        PriceError: see `find_price`.
    """
    day = today().isoformat()
    return find_price(args.instance, args.price_per_hour, day, currency=args.currency, prices=args.prices)


def find_price(
    instance: str | None,
    price_per_hour: float | None,
    today: str,
    *,
    currency: str | None = None,
    prices: Path | None = None,
) -> Price | None:
    """The price to count with: what was given, else the table's row, else none.

    Args:
        instance: a name in the table, or any name when `price_per_hour` is given too.
        price_per_hour: overrides the table.
        today: the date of a price that was given, ISO 8601.
        currency: of `price_per_hour`; where None that of the instance in the table, else DEFAULT_CURRENCY.
        prices: the user's own table, see `price_table`.

    Raises:
        PriceError: an instance that the table does not know, without a price; a price below or at 0; a currency that
            is not the table's; or a table that cannot be read.
    """
    table = price_table(prices)
    if price_per_hour is not None:
        make = partial(replace, table[instance]) if instance in table else partial(Price, instance=instance)
        listed = table[instance].currency if instance in table else DEFAULT_CURRENCY
        given = {"price_per_hour": price_per_hour, "currency": currency or listed}
        return make(**given, date=today, source="given with --price-per-hour", stale=None, kind=None)
    if instance is None:
        if currency is not None:
            raise PriceError(f"--currency {currency} without a price; give --price-per-hour too")
        return None
    if instance not in table:
        # The registry's hint for mistyped names; it imports nothing heavy.
        from tritonclip_export.registry.families import close_matches

        raise PriceError(
            f"no price for the instance {instance!r}; {close_matches(instance, list(table))}; {LIST_COMMAND} lists "
            f"all {len(table)}; or give --price-per-hour"
        )
    price = table[instance]
    if currency not in (None, price.currency):
        raise PriceError(
            f"the price of {instance} is in {price.currency}, not {currency}, and nothing is converted; leave "
            "--currency out, or give --price-per-hour"
        )
    return price
