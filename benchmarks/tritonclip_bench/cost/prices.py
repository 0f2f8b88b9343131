"""What an hour of a server costs: dated data with a source, and how far a price may be trusted."""

from __future__ import annotations

import calendar
import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tritonclip_bench.errors import PriceError

UNDATED = "undated"
# An older price warns.
OLD_DAYS = 180
DEFAULT_CURRENCY = "USD"
SPOT = "spot"
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
        ValueError: it is not in one of these forms.
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
