"""What an hour of a server costs: dated data with a source, and how far a price may be trusted."""

from __future__ import annotations

import argparse
import calendar
import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import PriceError

UNDATED = "undated"
# An older price warns.
OLD_DAYS = 180
DEFAULT_CURRENCY = "USD"
SPOT = "spot"
LIST_COMMAND = "`tritonclip bench cost --list`"
_QUARTER, _MONTH = re.compile("([0-9]{4})-Q([1-4])"), re.compile("([0-9]{4})-([0-9]{2})")
_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Price:
    """The price of one server.

    Attributes:
        price_per_hour: for the whole instance, not for one of its GPUs.
        date: when the price was true, as its source says it: a day, a month, a quarter or "undated".
        stale: why the price is doubtful; None where nothing speaks against it.
        instance, gpu, gpus: None where the price came without a machine; `gpu` as its driver calls it.
        currency: ISO 4217; nothing is converted.
        kind: "on demand" or "spot"; None where the user gave the price.
        vcpu, memory_gib: None where unknown.
    """

    price_per_hour: float
    date: str
    source: str
    stale: str | None = None
    instance: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    currency: str = DEFAULT_CURRENCY
    provider: str | None = None
    region: str | None = None
    kind: str | None = None
    vcpu: int | None = None
    memory_gib: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.price_per_hour) and self.price_per_hour > 0):
            raise PriceError(
                f"the price is {self.price_per_hour} an hour; allowed: a number above 0; correct --price-per-hour"
            )
        if not re.fullmatch("[A-Z]{3}", self.currency):
            raise PriceError(
                f"the currency is {self.currency!r}; allowed: three capital letters such as EUR; correct --currency"
            )

    @property
    def name(self) -> str | None:
        """What `--instance` calls it."""
        return price_name(self.instance, self.kind)

    def doubts(self, today: datetime.date) -> list[str]:
        """Why the price may not hold today, a sentence each; none where nothing speaks against it."""
        told = f"the price of {self.name or 'the server'}"
        day = last_day(self.date)
        found = [f"{told} is STALE: {self.stale}"] if self.stale else []
        if day is None and not self.stale:
            found.append(f"{told} has no date")
        if day is not None and (age := (today - day).days) > OLD_DAYS:
            found.append(f"{told} is {age} days old ({self.date})")
        return [f"{doubt}; look it up, and give it with --price-per-hour" for doubt in found]

    def to_dict(self) -> dict[str, object]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Price:
        """The inverse of `to_dict`, of an older version's too.

        Raises:
            PriceError: it is no price.
        """
        known = {field.name for field in fields(cls)}
        try:
            price = cls(**{key: value for key, value in entry.items() if key in known})
            last_day(price.date)
        except (TypeError, ValueError) as error:
            raise PriceError(
                f"a record's price cannot be read ({error}); give --price-per-hour or --instance"
            ) from None
        return price


def price_name(instance: str | None, kind: str | None) -> str | None:
    """What `--instance` calls a price: a spot price is another than that on demand."""
    return f"{instance}:{SPOT}" if instance and kind == SPOT else instance


def last_day(text: str) -> datetime.date | None:
    """The last day of a date such as 2026-05-01, 2026-05 or 2026-Q1; None for "undated".

    Raises:
        ValueError: it is none of these.
    """
    if text == UNDATED:
        return None
    try:
        if match := _QUARTER.fullmatch(text):
            return _end(int(match[1]), 3 * int(match[2]))
        if match := _MONTH.fullmatch(text):
            return _end(int(match[1]), int(match[2]))
        if _DAY.fullmatch(text):
            return datetime.date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is no date")


def _end(year: int, month: int) -> datetime.date:
    return datetime.date(year, month, calendar.monthrange(year, month)[1])


def price_table(own: Path | None = None) -> dict[str, Price]:
    """The prices that come with the package, by `Price.name`, and those of the user's file, which replace them.

    Raises:
        PriceError: the file is not there, or what stands in it is no price.
    """
    # It makes `Price`s itself.
    from tritonclip_bench.price_file import PACKAGED, read_prices

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


def dollars_per_million(items_per_s: float, price_per_hour: float) -> float:
    """The price of a million items on a server that is kept this busy, in the currency of `price_per_hour`.

    1e6 / items_per_s * price_per_hour / 3600: the "cost per 1M inferences" of the AWS Neuron
    performance pages (awsdocs-neuron.readthedocs-hosted.com, "Inference performance").

    Raises:
        PriceError: nothing was served, so a million items have no price.
    """
    if items_per_s <= 0:
        raise PriceError(f"{items_per_s} items a second were served; the cost needs a rate above 0")
    return 1e6 / items_per_s * price_per_hour / 3600
