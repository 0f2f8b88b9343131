"""What a million items cost and how many a dollar buys, from a rate and the price of the whole server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclip_bench.cost.price_table import today
from tritonclip_bench.cost.prices import DEFAULT_CURRENCY, Price, dollars_per_million

SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£"}


@dataclass(frozen=True)
class Machine:
    """What a server ran on, where that is known.

    Attributes:
        cores: logical processors, which clouds call vCPUs.
        gpus: their names, as the driver tells them.
    """

    cores: int
    gpus: Sequence[str]


def items_per_dollar(items_per_s: float, price_per_hour: float) -> float:
    """How many items one unit of the currency of `price_per_hour` buys."""
    return items_per_s * 3600 / price_per_hour


def cost(
    items_per_s: float,
    price: Price | None,
    item: str,
    spread: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
) -> dict[str, Any] | None:
    """What the items cost, whose price it is, and what speaks against it; None without a price or without items.

    Args:
        item: what is counted, in the plural.
        spread: of items a second over repeated runs, as records hold it: its 95 % interval becomes one of the cost.
        machine: what the server ran on; None where unknown.
    """
    if price is None or not items_per_s:
        return None
    return {
        "dollars_per_million": dollars_per_million(items_per_s, price.price_per_hour),
        "items_per_dollar": items_per_dollar(items_per_s, price.price_per_hour),
        "currency": price.currency,
        "item": item,
        "spread": _spread(spread, price),
        "price": price.to_dict(),
        "priced_as_if": machine and priced_as_if(price, machine),
        "warnings": price.doubts(today()),
    }


def _spread(spread: Mapping[str, Any] | None, price: Price) -> dict[str, Any] | None:
    """The 95 % intervals, [low, high]; a rate that may be 0 has a price without an upper end: None."""
    if not spread or spread["half_width"] is None:
        return None
    low, high = (max(0.0, spread["mean"] + sign * spread["half_width"]) for sign in (-1, 1))
    prices = [dollars_per_million(rate, price.price_per_hour) if rate else None for rate in (high, low)]
    numbers = [items_per_dollar(rate, price.price_per_hour) for rate in (low, high)]
    return {"n": spread["n"], "dollars_per_million": prices, "items_per_dollar": numbers}


def priced_as_if(price: Price, machine: Machine) -> str | None:
    """How the machine differs from the instance whose price is taken; None where nothing is known to differ."""
    differs = price.vcpu not in (None, machine.cores)
    if price.gpu or price.vcpu:
        same = [name for name in machine.gpus if is_gpu(name, price.gpu)]
        differs = differs or not len(same) == len(machine.gpus) == (price.gpus or 0)
    if not differs:
        return None
    has = f"{machine.cores} vCPU, {', '.join(machine.gpus) or 'no GPU'}"
    return f"this machine is priced as if it were one {price.name} ({hardware(price)}); it has {has}"


def is_gpu(name: str, wanted: str | None) -> bool:
    """Whether a driver's name, such as "Tesla T4", is that of a price, such as "T4"."""
    return wanted is not None and f" {name}".endswith(f" {wanted}")


def hardware(price: Price) -> str:
    """Its vCPUs and GPUs, as far as they are known; "" where nothing is."""
    gpus = price.gpu and (price.gpu if price.gpus == 1 else f"{price.gpus} x {price.gpu}")
    parts = (price.vcpu and f"{price.vcpu} vCPU", gpus or (price.vcpu and "no GPU"))
    return ", ".join(part for part in parts if part)


def money(amount: float, currency: str) -> str:
    """An amount with two decimals, or where it is small with two digits that tell something."""
    decimals = 2 if amount >= 0.1 or not amount else 1 - math.floor(math.log10(amount))
    return _of_currency(f"{amount:,.{decimals}f}", currency)


def hourly(price: Price) -> str:
    """A price as it was given, without rounding."""
    return _of_currency(f"{price.price_per_hour:.12g}", price.currency)


def _of_currency(digits: str, currency: str) -> str:
    return f"{SYMBOLS[currency]}{digits}" if currency in SYMBOLS else f"{digits} {currency}"


def number(value: float) -> str:
    """A count in words: "5.3 million", "83,000", "640"."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {word}" if value < 1000 * size else f"{value / size:,.0f} {word}"
    return f"{value:,.0f}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def line(found: Mapping[str, Any]) -> str:
    """A cost (of `cost`) as one line, with the price that it is counted with."""
    currency = found["currency"]
    unit = "dollar" if currency == DEFAULT_CURRENCY else currency
    price = Price.from_dict(found["price"])
    known = hardware(price)
    machine = f" for {price.name}{f' ({known})' if known else ''}" if price.instance else ""
    origin = " ".join(filter(None, (price.provider, price.region)))
    source = ", ".join(filter(None, (origin, price.kind, price.date, price.source)))
    return (
        f"cost: {number(found['items_per_dollar'])} {found['item']} per {unit}, "
        f"{money(found['dollars_per_million'], currency)} per million{_within(found)} at "
        f"{hourly(price)} an hour{machine} [{source}]"
    )


def _within(found: Mapping[str, Any]) -> str:
    if not found["spread"]:
        return ""
    low, high = found["spread"]["dollars_per_million"]
    top = "no upper bound" if high is None else money(high, found["currency"])
    return f" ({money(low, found['currency'])} to {top}, 95 % confidence of {found['spread']['n']} runs)"
