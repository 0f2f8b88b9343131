"""The settings that `tritonclip bench tune` varies, and the values that it tries of each.

Only what leaves every answer as it is: neither the precision nor what decodes the images.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tritonclip_bench.traffic.scenarios import IMAGE_CALLS
from tritonclip_export.errors import RepositoryError
from tritonclip_export.settings import ONNXRUNTIME, PYTHON, TENSORRT, Settings

Values = Mapping[str, Sequence[Any]]

BATCHES = (8, 32, 64, 128)
INSTANCES = (1, 2, 3)
DELAYS_US = (0, 500, 2000)


def _whole(text: str) -> int:
    return int(text)


def _switch(text: str) -> bool:
    return {"yes": True, "no": False}[text]


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "threads": _whole,
    "preprocess_threads": _whole,
    "image_batch": _whole,
    "text_batch": _whole,
    "encoder_instances": _whole,
    "queue_delay_us": _whole,
    "pinned_memory": _switch,
    "runtime": str,
}
TUNABLE = tuple(_PARSERS)


def parse_vary(text: str) -> tuple[str, tuple[Any, ...]]:
    """Read "preprocess_threads=1,2,4".

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    name, _, values = text.partition("=")
    if name not in TUNABLE:
        raise argparse.ArgumentTypeError(f"{text!r} given; write NAME=VALUE,VALUE with one of: {', '.join(TUNABLE)}")
    try:
        return name, tuple(dict.fromkeys(_PARSERS[name](value) for value in values.split(",")))
    except (KeyError, ValueError):
        kind = "yes or no" if _PARSERS[name] is _switch else "whole numbers"
        raise argparse.ArgumentTypeError(f"{text!r} given; give {kind} after {name}=, with commas between") from None


def default_values(
    present: Settings, calls: Collection[str], cores: int, backends: Collection[str] = ()
) -> dict[str, list[Any]]:
    """What is worth a trial on a machine of so many `cores`, the most promising setting first.

    A batch below the present one is none: a caller may send as much in one request today.

    Args:
        calls: the entry points that the load asks.
        backends: of the server that will serve; `onnxruntime` is tried where it has it, and no engines serve.
    """
    images, texts = not IMAGE_CALLS.isdisjoint(calls), not {"embed_text", "clip"}.isdisjoint(calls)
    tried: dict[str, Sequence[Any]] = {}
    if ONNXRUNTIME in backends and present.runtime != TENSORRT:
        tried["runtime"] = (PYTHON, ONNXRUNTIME)
    if images:
        tried["preprocess_threads"] = (max(1, cores // 4), max(1, cores // 2), cores)
    if present.runtime == PYTHON:
        tried["threads"] = (max(1, cores // 2), 0)
    else:
        tried |= {"encoder_instances": INSTANCES, "queue_delay_us": DELAYS_US}
    if images:
        tried["image_batch"] = [size for size in BATCHES if size > present.image_batch]
    if texts:
        tried["text_batch"] = [size for size in BATCHES if size > present.text_batch]
    return {name: found for name, values in tried.items() if (found := _others(present, name, values, cores))}


def _others(present: Settings, name: str, values: Sequence[Any], cores: int) -> list[Any]:
    # 0 threads are all of them.
    meant = {value: value or cores if name == "threads" else value for value in (getattr(present, name), *values)}
    now = meant[getattr(present, name)]
    return [value for value in dict.fromkeys(values) if meant[value] != now]


def neighbours(settings: Settings, name: str, values: Sequence[Any]) -> list[Settings]:
    """`settings` with each other value of one setting, as far as the runtime has it."""
    found = [_changed_or_none(settings, {name: value}) for value in values]
    return [other for other in found if other is not None and other != settings]


def grid(present: Settings, varied: Values) -> list[Settings]:
    """Every combination of the values but the present settings; what no runtime takes together is left out.

    Raises:
        RepositoryError: a value that is allowed in no combination.
    """
    found: dict[Settings, None] = {}
    accepted: set[tuple[str, Any]] = set()
    refusals: dict[tuple[str, Any], RepositoryError] = {}
    for values in itertools.product(*varied.values()):
        changes = dict(zip(varied, values, strict=True))
        try:
            found[present.changed(changes)] = None
            accepted |= set(changes.items())
        except RepositoryError as error:
            refusals |= dict.fromkeys(changes.items(), error)
    for change, refusal in refusals.items():
        if change not in accepted:
            raise refusal
    found.pop(present, None)
    return list(found)


def changes(settings: Settings, present: Settings) -> dict[str, Any]:
    """What `settings` have otherwise than `present`, by attribute."""
    now = present.to_dict()
    return {name: value for name, value in settings.to_dict().items() if value != now[name]}


def label(settings: Settings, present: Settings) -> str:
    """For people: `threads=0, preprocess_threads=4`, or `present`."""
    words = {True: "yes", False: "no", None: "default"}
    found = changes(settings, present).items()
    told = (f"{name}={value if type(value) is int else words.get(value, value)}" for name, value in found)
    return ", ".join(told) or "present"


def _changed_or_none(settings: Settings, change: Mapping[str, Any]) -> Settings | None:
    try:
        return settings.changed(change)
    except RepositoryError:
        return None
