"""`tritonclip check`: is a model repository still what was exported?"""

from __future__ import annotations

import argparse
from pathlib import Path

from tritonclip_export.commands.sign_options import add_verify_key

HELP = "compare a model repository with its manifest: every file, every fingerprint, and its engines with this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")
    add_verify_key(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, and print what stands there."""
    from tritonclip_export.local_gpu import detect, records, require
    from tritonclip_export.repository.manifest import SIGNATURE, verify

    manifest = verify(args.repository, key=args.verify_key)
    spec = manifest["spec"]
    print(f"{args.repository}: {len(manifest['files'])} files as exported on {manifest.get('created')}")
    print(f"{spec.get('name')} ({spec.get('precision')}, {spec.get('runtime')}), fingerprint {spec.get('fingerprint')}")
    if args.verify_key:
        print(f"signed by {args.verify_key}")
    elif (args.repository / SIGNATURE).exists():
        print("its signature was not compared with a key: give --verify-key PUB")
    if records(manifest):
        gpus = detect()
        print(require(manifest, gpus) if gpus.gpus else "its engines were not compared with a GPU: none is seen here")
    return 0
