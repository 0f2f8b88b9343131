"""The options of what a parity gate compares on, beside what is built in."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_probes(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--probe-images", metavar="DIR", type=Path, help="your images, beside the built-in ones")
    parser.add_argument("--probe-texts", metavar="FILE", type=Path, help="your texts, one a line")
