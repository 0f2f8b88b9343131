"""The options of signing and of proving a signature, for every command that has them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonclip_export.repository.signature import Signer


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Declare `--sign`, for a command that writes a manifest."""
    parser.add_argument(
        "--sign",
        metavar="KEY",
        type=Path,
        help="sign the manifest with this secret key of minisign (default: unsigned; a signature there goes)",
    )


def add_verify_key(parser: argparse.ArgumentParser) -> None:
    """Declare `--verify-key`, for a command that reads a repository."""
    parser.add_argument(
        "--verify-key",
        metavar="PUB",
        help="refuse a manifest that is not signed by this public key of minisign: a file, or the key itself",
    )


def signer_of(args: argparse.Namespace) -> Signer | None:
    """The key that was given, unlocked before any work is done.

    Raises:
        SignatureError: it cannot be used.
    """
    from tritonclip_export.repository.signature import Signer

    return Signer(args.sign) if args.sign is not None else None
