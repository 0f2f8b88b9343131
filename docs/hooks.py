"""What mkdocs cannot do by itself: the reference of the command line, and links that leave `docs/`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from tritonclip_client.main import build_parser

COMMANDS = "reference/commands.md"
_WIDTH = 80
# They lead into the source tree, which is no part of the site.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:benchmarks|deploy|tests|export|client|model_repository)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    if page.file.src_uri == COMMANDS:
        markdown += "".join(_sections(build_parser(), 2))
    return _OUTSIDE.sub(r"\1", markdown)


def _sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    parser.formatter_class = _Formatter
    yield f"\n{'#' * min(level, 4)} {parser.prog}\n\n```text\n{parser.format_help()}```\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _sections(one, level + 1)


class _Formatter(argparse.HelpFormatter):
    """Of one width, whatever terminal builds the site."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)
