"""`tritonclip similarity`: how well every text fits every image."""

from __future__ import annotations

import argparse
from pathlib import Path

from tritonclip_client.commands._common import add_server_arguments, open_client, print_json, with_lines
from tritonclip_client.errors import InvalidInputError
from tritonclip_client.table import format_table

HELP = "score every image against every text; the table holds probabilities"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the subcommand's parser."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; may be given again")
    parser.add_argument(
        "--texts-file", type=Path, metavar="FILE", help="UTF-8, one text a line; empty lines are left out"
    )
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Score and print: a row an image, a column a text."""
    texts = with_lines(args.text, args.texts_file)
    if not texts:
        raise InvalidInputError("no texts given; give --text once for each, or --texts-file")
    with open_client(args) as client:
        result = client.similarity(args.images, texts)
    probabilities = result.probabilities.tolist()
    if args.json:
        document = {
            "images": args.images,
            "texts": texts,
            "logits": result.logits.tolist(),
            "probabilities": probabilities,
        }
        print_json(document)
    else:
        rows = [(image, *row) for image, row in zip(args.images, probabilities, strict=True)]
        print(format_table(["image", *texts], rows))
    return 0
