"""What Triton's own tests ask, and what asks it here: mirrors.toml as the page shows it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("mirrors.toml")
CAMPAIGN = "campaign "


@dataclass(frozen=True)
class Mirror:
    """One of Triton's tests.

    Attributes:
        test: its name in Triton's qa/.
        checks: what is asked.
        covers: what asks it here: `FILE::TEST`, or `campaign NAME`.
        why: it is not asked.
    """

    test: str
    checks: str
    covers: tuple[str, ...] = ()
    why: str = ""


def read_mirrors() -> list[Mirror]:
    """All of them, in the order of the file."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return [Mirror(**{**one, "covers": tuple(one.get("covers", ()))}) for one in content["mirror"]]


def rows(shown: Collection[str]) -> list[list[str]]:
    """Of the page's table: name, what it asks, what asks it here; `shown` are the campaigns that the page shows."""
    covers = {one.test: ", ".join(_linked(cover, shown) for cover in one.covers) for one in read_mirrors()}
    return [[one.test, one.checks, covers[one.test] or f"not asked: {one.why}"] for one in read_mirrors()]


def _linked(cover: str, shown: Collection[str]) -> str:
    if cover.startswith(CAMPAIGN):
        name = cover.removeprefix(CAMPAIGN)
        return f"campaign [{name}](#{name})" if name in shown else f"campaign {name} (not run yet)"
    file, _, test = cover.partition("::")
    return f"[{test}](../{file})"
