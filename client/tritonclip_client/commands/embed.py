"""`tritonclip embed`: embeddings of images and texts into a .npy file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_client.commands._common import add_server_arguments, open_client, print_json, with_lines
from tritonclip_client.errors import InvalidInputError
from tritonclip_client.files import replacing
from tritonclip_client.table import format_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HELP = "embed images and texts into a .npy file: float32, one row an item, images first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the subcommand's parser."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text; may be given again")
    parser.add_argument(
        "--texts-file", type=Path, metavar="FILE", help="UTF-8, one text a line; empty lines are left out"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.npy", help="replaced as a whole, or not at all"
    )
    parser.add_argument(
        "--long-text",
        choices=("truncate", "chunk"),
        default="truncate",
        help="of a text longer than the model reads, embed its beginning, or chunks of it (%(default)s)",
    )
    parser.add_argument(
        "--aggregate", choices=("mean", "max"), help="how the chunks of a text become one embedding (mean)"
    )
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Embed, write, and say which row is what."""
    output = _checked_output(args.output)
    texts = with_lines(args.text, args.texts_file)
    if not args.images and not texts:
        raise InvalidInputError("nothing to embed given; give image files, --text or --texts-file")
    if args.aggregate and args.long_text != "chunk":
        raise InvalidInputError(f"--aggregate {args.aggregate} given; give it with --long-text chunk")
    embeddings = _embed(args, texts)
    _write(output, embeddings)
    rows = [("image", image) for image in args.images] + [("text", text) for text in texts]
    if args.json:
        document = {
            "output": str(output),
            "shape": list(embeddings.shape),
            "dtype": str(embeddings.dtype),
            "rows": [{"row": row, "kind": kind, "item": item} for row, (kind, item) in enumerate(rows)],
        }
        print_json(document)
    else:
        print(format_table(["row", "kind", "item"], [(row, *item) for row, item in enumerate(rows)]))
        print(f"{output}: {embeddings.dtype} {list(embeddings.shape)}")
    return 0


def _embed(args: argparse.Namespace, texts: list[str]) -> npt.NDArray[np.float32]:
    import numpy as np

    with open_client(args) as client:
        parts = [client.embed_images(args.images)] if args.images else []
        if texts:
            options = {"long_text": args.long_text, "aggregate": args.aggregate or "mean"}
            parts.append(client.embed_texts(texts, **options))
    return np.concatenate(parts)


def _checked_output(path: Path) -> Path:
    if path.suffix != ".npy" or path.is_dir():
        raise InvalidInputError(f"--output {path} given; give the name of a .npy file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"--output {path}: cannot write into {path.parent}; give a file in an existing, writable directory"
        )
    return path


def _write(path: Path, embeddings: npt.NDArray[np.float32]) -> None:
    import numpy as np

    try:
        with replacing(path) as file:
            np.save(file, embeddings)
    except OSError as error:
        raise InvalidInputError(f"--output {path} cannot be written ({error.strerror}); give another place") from error
