"""`tritonclip sign`: vouches for a model repository, and makes the keys for it."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "sign a model repository's manifest, after every file was compared with it; or make a pair of keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "repository", metavar="DIR", nargs="?", type=Path, help="a directory that `tritonclip export` wrote"
    )
    parser.add_argument("--key", metavar="KEY", type=Path, help="minisign's secret key")
    parser.add_argument("--generate", metavar="KEY", type=Path, help="write a new secret key, and KEY.pub")
    parser.add_argument(
        "--no-password", action="store_true", help="with --generate: whoever reads the file can sign, as a CI job must"
    )


def run(args: argparse.Namespace) -> int:
    """Sign, or make keys."""
    from tritonclip_export.errors import SignatureError

    if args.generate is not None:
        if args.repository is not None or args.key is not None:
            raise SignatureError("--generate makes keys and signs nothing; leave out DIR and --key")
        return _generate(args)
    if args.repository is None or args.key is None or args.no_password:
        raise SignatureError("give DIR and --key KEY to sign, or --generate KEY to make a pair of keys")
    return _sign(args.repository.resolve(), args.key)


def _generate(args: argparse.Namespace) -> int:
    from tritonclip_export.repository.signature import generate

    public = generate(args.generate, encrypted=not args.no_password)
    print(f"{args.generate}: the secret key; keep it from every machine that serves")
    print(f"{public}: the public key, for --verify-key: {public.read_text().splitlines()[1]}")
    return 0


def _sign(repository: Path, key: Path) -> int:
    from tritonclip_export.repository.manifest import sign
    from tritonclip_export.repository.signature import Signer

    manifest = sign(repository, Signer(key))
    print(f"{repository}: signed, {len(manifest['files'])} files, fingerprint {manifest['spec'].get('fingerprint')}")
    return 0
