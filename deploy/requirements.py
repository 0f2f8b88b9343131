"""Prints what tritonclip and some of its extras require, one a line: an image's layer that lasts as long as they do.

    python3 requirements.py EXTRA …

Reads the pyproject.toml of the working directory. Python 3.11 or later, the standard library alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomllib

_OWN_EXTRAS = re.compile(r"tritonclip\[([\w,-]+)\]")


def requirements(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """The dependencies and those of some extras, the extras that they name resolved; sorted, each once."""
    return sorted({*project["dependencies"], *(one for extra in extras for one in _of(project, extra))})


def _of(project: Mapping[str, Any], extra: str) -> Iterator[str]:
    for requirement in project["optional-dependencies"][extra]:
        own = _OWN_EXTRAS.fullmatch(requirement)
        if own is None:
            yield requirement
            continue
        for name in own[1].split(","):
            yield from _of(project, name)


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"], sys.argv[1:])))
