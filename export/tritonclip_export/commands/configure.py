"""`tritonclip configure`: how a model repository is served, changed where it stands."""

from __future__ import annotations

import argparse
from pathlib import Path

from tritonclip_export.commands.settings_options import (
    add_graph_batches,
    add_settings,
    given_settings,
    parse_graph_batches,
)
from tritonclip_export.commands.sign_options import add_sign, signer_of
from tritonclip_export.settings import RUNTIMES

HELP = "change what runs a model repository's towers, its batches, queues and instances, without exporting again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; what is not given stays as it is."""
    parser.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")
    group = parser.add_argument_group("settings; what is not given stays as it is, and defaults are those of an export")
    add_settings(group, RUNTIMES)
    add_graph_batches(group)
    add_sign(parser)


def run(args: argparse.Namespace) -> int:
    """Change the configs, and print all settings."""
    from tritonclip_export.repository.configure import configure

    changes = given_settings(args)
    if args.graph_batches is not None:
        changes["graph_batches"] = parse_graph_batches(args.graph_batches)
    before, after, written = configure(args.repository, changes, signer_of(args))
    was = before.to_dict()
    for name, value in after.to_dict().items():
        print(f"{name:22}{_readable(value)}{'' if value == was[name] else f'  (was {_readable(was[name])})'}")
    if written:
        what = f"{len(written)} files written; a server reads them when it starts"
    else:
        what = "no file changes" if after == before else "recorded; with this runtime it changes no file"
    print(f"{args.repository}: {what}")
    return 0


def _readable(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "by default" if value is None else str(value)
