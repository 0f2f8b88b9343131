"""Which family a config with its weights belongs to, by the patterns of families.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from tritonclip_export.errors import ExportError

FILE = Path(__file__).with_name("families.json")
_NOT_SPELLING = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Family:
    """Models that were trained and are served alike.

    Attributes:
        aliases: other names that people use for it.
        configs: pattern of the whole name of a config.
        weights: pattern of the whole name of the weights; "" is a config without released weights.
    """

    name: str
    about: str
    aliases: tuple[str, ...]
    configs: str
    weights: str

    def holds(self, config: str, weights: str) -> bool:
        """Whether this config with these weights belongs here."""
        return bool(re.fullmatch(self.configs, config) and re.fullmatch(self.weights, weights))

    def is_called(self, name: str) -> bool:
        """Whether that is its name or an alias, in any case and punctuation."""
        return spelling(name) in map(spelling, (self.name, *self.aliases))


@lru_cache(maxsize=1)
def all_families() -> tuple[Family, ...]:
    """Every family, in the order in which they are shown."""
    return tuple(
        Family(**{**entry, "aliases": tuple(entry["aliases"])}) for entry in json.loads(FILE.read_text("utf-8"))
    )


def family_of(config: str, weights: str = "") -> Family:
    """The one family of a config with these weights; "" for an architecture without released weights.

    Raises:
        ExportError: no family holds it, or several do: families.json has to say more.
    """
    found = [family for family in all_families() if family.holds(config, weights)]
    if len(found) != 1:
        names = ", ".join(family.name for family in found) or "none"
        raise ExportError(
            f"config {config!r} with weights {weights!r} matches {len(found)} families ({names}), and has to match "
            f"one; change the patterns in {FILE.name}"
        )
    return found[0]


def find_families(name: str) -> Sequence[Family]:
    """The family of that name or alias; else all whose name contains it ("eva": EVA-CLIP and EVA-02).

    Raises:
        ExportError: no family is called that.
    """
    families = all_families()
    wanted = spelling(name)
    found = [family for family in families if family.is_called(name)] or [
        family for family in families if wanted and wanted in spelling(family.name)
    ]
    if not found:
        names = [family.name for family in families]
        raise ExportError(f"no family is called {name!r}; {close_matches(name, names)}. Allowed: {', '.join(names)}")
    return found


def close_matches(name: str, allowed: Sequence[str]) -> str:
    """A hint for whoever mistyped a name."""
    by_spelling = {spelling(other): other for other in allowed}
    close = get_close_matches(spelling(name), by_spelling, n=3, cutoff=0.6)
    return f"closest: {', '.join(by_spelling[match] for match in close)}" if close else "nothing comes close"


def spelling(name: str) -> str:
    """A name without case and punctuation: what counts when names are compared."""
    return _NOT_SPELLING.sub("", name.lower())
