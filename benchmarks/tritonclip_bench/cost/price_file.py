"""Reads a file of prices, the package's or the user's own, and says what is wrong in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeGuard

from tritonclip_bench.cost.prices import SPOT, UNDATED, Price, last_day
from tritonclip_bench.errors import PriceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGED = Path(__file__).with_name("prices.toml")


def read_prices(path: Path) -> dict[str, Price]:
    """The prices of a file, by `Price.name`.

    Raises:
        PriceError: it cannot be read, is no TOML, or one of its entries is no price; the message names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PriceError(f"{path} cannot be read ({error.strerror}); give a file of prices") from None
    except ValueError as error:
        raise PriceError(f"{path} is no TOML: {error}") from None
    found: dict[str, Price] = {}
    for where, entry in _entries(path, content):
        price = _price(where, entry)
        if price.name in found:
            raise PriceError(f"{where} stands there twice; leave one, or give one another name")
        found[str(price.name)] = price
    return found


def _entries(path: Path, content: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every server with what it takes from its list, and where it stands, for messages."""
    lists = content.get("list")
    if not (_is_tables(lists) and set(content) == {"list"}):
        raise PriceError(
            f"{path} holds {', '.join(content) or 'nothing'}; allowed: [[list]] tables, as docs/cost.md says"
        )
    found = []
    for number, one in enumerate(lists, 1):
        servers = one.get("servers")
        if not _is_tables(servers):
            raise PriceError(
                f"{path}, list {number} has no servers; give servers = [ {{ instance = ..., price = ... }} ]"
            )
        common = {key: value for key, value in one.items() if key != "servers"}
        for index, server in enumerate(servers, 1):
            where = f"{path}, list {number}, server {server.get('instance', index)}"
            found.append((where, {**common, **server}))
    return found


def _is_tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _price(where: str, entry: Mapping[str, Any]) -> Price:
    if unknown := [key for key in entry if key not in _KEYS]:
        raise PriceError(f"{where}: the key {unknown[0]!r} is unknown; allowed: {', '.join(_KEYS)}")
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise PriceError(f"{where}: {missing[0]} is missing; a price needs {', '.join(_REQUIRED)}")
    for key, value in entry.items():
        is_right, allowed = _KEYS[key]
        if not is_right(value):
            raise PriceError(f"{where}: {key} is {value!r}; allowed: {allowed}")
    if ("gpu" in entry) != ("gpus" in entry):
        raise PriceError(f"{where}: gpu and gpus go together; give the name and the number, or neither")
    told = {key: value for key, value in entry.items() if key not in ("price", "unit", "date")}
    return Price(price_per_hour=float(entry["price"]), date=str(entry["date"]), **told)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_currency(value: object) -> bool:
    return isinstance(value, str) and len(value) == 3 and value.isascii() and value.isalpha() and value.isupper()


def _is_date(value: object) -> bool:
    # TOML has dates of its own, without quotes; a time of day is none.
    if type(value) is date:
        return True
    try:
        return isinstance(value, str) and (value == UNDATED or last_day(value) is not None)
    except ValueError:
        return False


_TEXT = (_is_text, "a text")
_COUNT = (_is_count, "a whole number from 1")
_AMOUNT = (_is_amount, "a number above 0")
_Check = tuple[Callable[[object], bool], str]
_KEYS: Mapping[str, _Check] = {
    "provider": _TEXT,
    "instance": _TEXT,
    "region": _TEXT,
    "gpu": _TEXT,
    "gpus": _COUNT,
    "vcpu": _COUNT,
    "memory_gib": _AMOUNT,
    "price": _AMOUNT,
    "currency": (_is_currency, "three capital letters such as EUR"),
    "unit": (lambda value: value == "hour", "'hour'"),
    "kind": (lambda value: value in ("on demand", SPOT), f"'on demand' or {SPOT!r}"),
    "date": (_is_date, f"2026-05-01, 2026-05, 2026-Q2 or {UNDATED!r}"),
    "source": _TEXT,
    "stale": (_is_text, "a text, why the price is doubtful; leave it out where nothing is"),
}
_REQUIRED = ("provider", "instance", "region", "price", "currency", "unit", "kind", "date", "source")
