"""What the tests exercised: records that `pytest tests/families --family-results FILE` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tritonclip_export.errors import ExportError
from tritonclip_export.registry.catalog import Row, find_model
from tritonclip_export.registry.families import all_families

FILE = Path(__file__).with_name("exercised.json")
SCALES = ("true", "text shrunk", "shrunk")
# A cosine of float32 may round to slightly more than one.
_MAX_COSINE = 1.001


@dataclass(frozen=True)
class Record:
    """One model that a test exported, both towers, and compared with its reference implementation.

    Attributes:
        config, family: names of the registry.
        source: where the checkpoint came from, such as "open_clip tag" or "Hugging Face directory".
        reference: the implementation that it was compared with, such as "open_clip" or "transformers".
        image_cosine, text_cosine: the smallest over all probes.
        max_abs: the largest absolute difference of any value of both towers' embeddings.
        served: answered through a real Triton server too.
        scale: both towers "true" to the architecture, only the "text shrunk" in depth and width, or both "shrunk".
    """

    config: str
    family: str
    source: str
    reference: str
    image_cosine: float
    text_cosine: float
    max_abs: float
    served: bool
    scale: str

    def summary(self) -> str:
        """In a word or two: "served", "exported", with "(shrunk)" where it was."""
        return ("served" if self.served else "exported") + ("" if self.scale == "true" else f" ({self.scale})")


def read_record(given: Mapping[str, Any]) -> Record:
    """Check a record, and give its family and config the registry's spelling.

    Raises:
        ExportError: a field is missing, unknown or impossible, or the config is not of the family.
    """
    names = [field.name for field in fields(Record)]
    if set(given) != set(names):
        raise _wrong(given, f"its fields are {', '.join(given) or 'none'}; they have to be {', '.join(names)}")
    for name in ("config", "family", "source", "reference"):
        if not isinstance(given[name], str) or not given[name].strip():
            raise _wrong(given, f"{name} is {given[name]!r}; a name is needed")
    for name, least, most in (
        ("image_cosine", -_MAX_COSINE, _MAX_COSINE),
        ("text_cosine", -_MAX_COSINE, _MAX_COSINE),
        ("max_abs", 0.0, math.inf),
    ):
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise _wrong(given, f"{name} is {value!r}; a number from {least} to {most} is needed")
    if not isinstance(given["served"], bool) or given["scale"] not in SCALES:
        raise _wrong(given, f"served has to be true or false, and scale one of {', '.join(SCALES)}")
    model = find_model(given["config"])
    families = [family for family in model.families() if family.is_called(given["family"])]
    if not families:
        allowed = ", ".join(family.name for family in model.families())
        raise _wrong(given, f"{model.config} is not of the family {given['family']!r} but of: {allowed}")
    return Record(**{**given, "config": model.config, "family": families[0].name})


def read_results(path: Path) -> list[Record]:
    """The records of a results file.

    Raises:
        ExportError: it cannot be read, or is no list of records.
    """
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read as results ({error}); write it with: pytest tests/families --family-results {path}"
        ) from error
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise ExportError(f"{path} is not a list of records; see tritonclip_export.registry.results.Record")
    return merge(map(read_record, given))


def merge(records: Iterable[Record]) -> list[Record]:
    """Records in the order of the families, those of the same model merged: the worst figures, served if one was."""
    found: dict[tuple[str, ...], Record] = {}
    for record in records:
        key = (record.family, record.config, record.source, record.reference, record.scale)
        found[key] = _worst(found[key], record) if key in found else record
    order = {family.name: place for place, family in enumerate(all_families())}
    return [found[key] for key in sorted(found, key=lambda key: (order[key[0]], *key[1:]))]


@lru_cache(maxsize=1)
def all_exercised() -> tuple[Record, ...]:
    """The records of exercised.json."""
    return tuple(Record(**entry) for entry in json.loads(FILE.read_text("utf-8")))


def exercised(row: Row, records: Sequence[Record]) -> str:
    """The most that was done with a row's config in its family; "" for nothing."""
    done = [record for record in records if (record.family, record.config) == (row.family.name, row.model.config)]
    return max(done, key=lambda record: (record.served, -SCALES.index(record.scale))).summary() if done else ""


def to_json(records: Iterable[Record]) -> str:
    """One record a line, as exercised.json and results files have it."""
    lines = ",\n".join(json.dumps(asdict(record)) for record in records)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def _worst(one: Record, other: Record) -> Record:
    return replace(
        one,
        image_cosine=min(one.image_cosine, other.image_cosine),
        text_cosine=min(one.text_cosine, other.text_cosine),
        max_abs=max(one.max_abs, other.max_abs),
        served=one.served or other.served,
    )


def _wrong(given: Mapping[str, Any], why: str) -> ExportError:
    return ExportError(f"the record of {given.get('config', 'an unnamed config')!r} cannot be used: {why}")
