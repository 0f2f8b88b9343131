"""What an hour costs, as dated data with a source, and what that makes a million items cost."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files

from tritonclip_bench.errors import PriceError


@dataclass(frozen=True)
class Price:
    """The price of one server.

    Attributes:
        price_per_hour: US dollars for the whole instance, not for one of its GPUs.
        date: when the price was true, as its source says it.
        stale: why the price is doubtful; None where nothing speaks against it.
        instance, gpu, gpus: None where the price came without a machine.
    """

    price_per_hour: float
    date: str
    source: str
    stale: str | None = None
    instance: str | None = None
    gpu: str | None = None
    gpus: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.price_per_hour) and self.price_per_hour > 0):
            raise PriceError(
                f"the price is {self.price_per_hour} dollars an hour; allowed: a number above 0; "
                "correct --price-per-hour"
            )

    def to_dict(self) -> dict[str, object]:
        """All fields, for JSON."""
        return asdict(self)


def price_table() -> dict[str, Price]:
    """The prices that come with the package, by instance name."""
    rows = json.loads(files("tritonclip_bench").joinpath("prices.json").read_text(encoding="utf-8"))
    return {row["instance"]: Price(**row) for row in rows}


def find_price(instance: str | None, price_per_hour: float | None, today: str) -> Price | None:
    """The price to count with: what was given, else the table's row, else none.

    Args:
        instance: a name in the table, or any name when `price_per_hour` is given too.
        price_per_hour: US dollars; overrides the table.
        today: the date of a price that was given, ISO 8601.

    Raises:
        PriceError: an instance that the table does not know, without a price; or a price below or at 0.
    """
    if price_per_hour is not None:
        return Price(price_per_hour, today, "given with --price-per-hour", instance=instance)
    if instance is None:
        return None
    table = price_table()
    if instance not in table:
        raise PriceError(
            f"no price for the instance {instance!r}; known: {', '.join(table)}; "
            "take one of these, or give --price-per-hour"
        )
    return table[instance]


def dollars_per_million(items_per_s: float, price_per_hour: float) -> float:
    """US dollars for a million items on a server that is kept this busy.

    1e6 / items_per_s * price_per_hour / 3600: the "cost per 1M inferences" of the AWS Neuron
    performance pages (awsdocs-neuron.readthedocs-hosted.com, "Inference performance").

    Raises:
        PriceError: nothing was served, so a million items have no price.
    """
    if items_per_s <= 0:
        raise PriceError(f"{items_per_s} items a second were served; the cost needs a rate above 0")
    return 1e6 / items_per_s * price_per_hour / 3600
