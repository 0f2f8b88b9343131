"""`tritonclip check`: is a model repository still what was exported?"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare a model repository with its manifest: every file, every fingerprint, and its engines with this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")


def run(args: argparse.Namespace) -> int:
    """Verify, and print what stands there."""
    from tritonclip_export.engine.here import look, records, require
    from tritonclip_export.manifest import verify

    manifest = verify(args.repository)
    spec = manifest["spec"]
    print(f"{args.repository}: {len(manifest['files'])} files as exported on {manifest['created']}")
    print(f"{spec['name']} ({spec['precision']}, {spec['runtime']}), fingerprint {spec['fingerprint']}")
    if records(manifest):
        here = look()
        print(require(manifest, here) if here.gpus else "its engines were not compared with a GPU: none is seen here")
    return 0
