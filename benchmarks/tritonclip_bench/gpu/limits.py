"""What a GPU could serve at most of a model, what that would cost, and what share of it a run has reached.

The roofline of gpu/roofline.py with the registry's operations (a multiply-add is two) and the GPUs' data sheets: dense
float16 products and memory bandwidth. It counts the encoders alone: decoding, the network and the CPU are not in it. No
server passes the limit, and one with few vCPUs stays far below; but texts are counted at their full length, and of
shorter ones, or of those that a cache answers, more can be served.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tritonclip_bench import records
from tritonclip_bench.cost.prices import Price, dollars_per_million
from tritonclip_bench.errors import BenchError
from tritonclip_bench.gpu.peaks import claimed_peaks
from tritonclip_bench.gpu.roofline import Item
from tritonclip_bench.records import Record
from tritonclip_export.registry.catalog import Model, all_models, find_model

FLOAT16_BYTES = 2
UNKNOWN = "unknown: no data sheet"
SHORTER = "texts are counted at their full length: shorter or cached ones may pass the limit"


@dataclass(frozen=True)
class Work:
    """What is asked of the GPU for one item.

    Attributes:
        name: for people.
        item: operations and bytes of one item.
    """

    name: str
    item: Item


@dataclass(frozen=True)
class Limit:
    """One GPU instance; of a GPU whose sources disagree there is one for each claim.

    Attributes:
        tflops: of one GPU, dense float16; None where unknown, and then all that follows from it.
        items_per_s: of all its GPUs together, in batches of at least `full_batch`.
        alone_per_s: the same in batches of one.
        full_batch: the smallest batch from which the products are the limit and not the reading of the weights; None
            where the memory always is.
        note: why a number is doubtful or missing.
    """

    price: Price
    tflops: float | None
    items_per_s: float | None
    alone_per_s: float | None
    full_batch: int | None
    dollars_per_million: float | None
    note: str


def work(model: Model, scenario: str, batch_size: int = 1, labels: int = 1) -> Work | None:
    """What one item of `scenario` asks; None where its items are of several kinds.

    Args:
        batch_size, labels: images and texts of a request of `clip`, whose item is an image.
    """
    output = 4 * model.embed_dim
    image = Item(model.image_flops, FLOAT16_BYTES * model.image_parameters, 3 * model.image_size**2 + output)
    # Counted at the full length, as the registry does: the server pads shorter texts to less.
    text = Item(model.text_flops, FLOAT16_BYTES * model.text_parameters, 4 * model.context_length + output)
    share = labels / batch_size
    both = Item(
        image.flops + share * text.flops,
        image.weight_bytes + text.weight_bytes,
        image.item_bytes + share * text.item_bytes,
    )
    found = {
        "image": (f"one image of {model.config}", image),
        "text": (f"one text of {model.config}, {model.context_length} tokens", text),
        "clip": (f"one image of {model.config} and {share:g} texts", both),
    }
    # The head of a classifier costs next to nothing beside the tower.
    found["classify"] = found["image"]
    return Work(*found[scenario]) if scenario in found else None


def work_of(load: Record, model: str | None) -> Work:
    """What an item of a load record asks.

    Args:
        model: the registry's name; None: the one that the server told.

    Raises:
        BenchError: the record does not tell, and nothing else does.
        tritonclip_export.errors.ExportError: no model has that name.
    """
    told = model or records.text(load, "server", "spec", "architecture")
    if model is None and told not in {known.config for known in all_models()}:
        raise BenchError(
            f"the registry knows no architecture {told!r}, so its operations are unknown; name one that costs the same "
            "with --model"
        )
    plan = records.section(load, "plan")
    scenario = records.text(plan, "scenario") or ""
    sizes = [int(records.number(plan, key) or 1) for key in ("batch_size", "labels")]
    found = work(find_model(str(told)), scenario, *sizes)
    if found is None:
        raise BenchError(f"items of the scenario {scenario!r} are of several kinds, without one limit")
    return found


def limits(one: Work, prices: Iterable[Price]) -> list[Limit]:
    """The limit of every instance that has a GPU, by currency the cheapest item first; unknown ones last."""
    found = [limit for price in prices if price.gpu for limit in _limits(one.item, price)]
    return sorted(found, key=_place)


def _place(limit: Limit) -> tuple[bool, str, float]:
    cost = limit.dollars_per_million
    return cost is None, limit.price.currency, cost or math.inf


def _limits(item: Item, price: Price) -> list[Limit]:
    sheets = claimed_peaks(str(price.gpu))
    return [_limit(item, price, sheet) for sheet in sheets] or [Limit(price, None, None, None, None, None, UNKNOWN)]


def _limit(item: Item, price: Price, sheet: dict[str, Any]) -> Limit:
    peak, bandwidth, gpus = sheet["flops"], sheet["bytes_per_s"], price.gpus or 1
    # Where the time to compute a batch is the time to move it.
    spare = item.flops * bandwidth - peak * item.item_bytes
    full = math.ceil(peak * item.weight_bytes / spare) if spare > 0 else None
    most = gpus * min(peak / item.flops, bandwidth / item.item_bytes)
    return Limit(
        price,
        peak / 1e12,
        most,
        gpus * item.attainable(1, peak, bandwidth),
        full,
        dollars_per_million(most, price.price_per_hour),
        "sources disagree on its peak" if len(claimed_peaks(str(price.gpu))) > 1 else "",
    )


@dataclass(frozen=True)
class Reached:
    """How near a run came to what its GPU could do.

    Attributes:
        work: what was asked for an item; None where unknown.
        limit: items a second; None where unknown.
        share: 0 to 1 of it.
        note: which GPU, or why there is no share.
    """

    label: str
    work: str | None
    items_per_s: float
    limit: float | None
    share: float | None
    note: str


def reached(load: Record, one: Work | str, price: Price | None) -> Reached:
    """The share of the limit that a load record has reached; of `one` that is a text, the reason why it is unknown.

    The GPU is what the record names; of a server elsewhere, whose GPU nothing names, that of the instance that it was
    priced as.
    """
    rate = records.number(load, "results", "total", "items_per_s") or 0.0
    if isinstance(one, str):
        return Reached(load["label"], None, rate, None, None, one)
    gpus = records.section(load, "results").get("gpus")
    names = [name for gpu in gpus or () if (name := records.text(gpu, "name"))]
    elsewhere = records.section(load, "server").get("same_machine_as_client") is False
    told = "its GPU"
    if not names and elsewhere and price is not None and price.gpu:
        names, told = [price.gpu] * (price.gpus or 1), "the GPU of the instance that it is priced as"
    if not names:
        without = gpus == [] and not elsewhere
        why = "it ran without a GPU: there is none to compare with" if without else "the record does not name its GPU"
        return Reached(load["label"], one.name, rate, None, None, why)
    peaks = [claimed_peaks(name) for name in names]
    if not all(peaks):
        return Reached(load["label"], one.name, rate, None, None, f"{UNKNOWN} of {', '.join(sorted(set(names)))}")
    # Where sources disagree, the higher claim: a share is then at least this.
    best = [max(sheets, key=lambda sheet: sheet["flops"]) for sheets in peaks]
    limit = sum(min(s["flops"] / one.item.flops, s["bytes_per_s"] / one.item.item_bytes) for s in best)
    doubt = (
        "; sources disagree on its peak, the higher one is taken" if any(len(sheets) > 1 for sheets in peaks) else ""
    )
    note = f"{told}: {len(names)} x {names[0]}{doubt}"
    if records.text(load, "plan", "scenario") in ("text", "clip"):
        note += f"; {SHORTER}"
    precision = records.text(load, "server", "spec", "precision")
    if precision not in (None, "float16"):
        note += f"; the limit is of float16, the run was {precision}"
    return Reached(load["label"], one.name, rate, limit, rate / limit, note)
