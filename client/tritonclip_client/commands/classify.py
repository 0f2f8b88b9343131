"""`tritonclip classify`: the best label of each image, of the labels given or of a classifier's own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_client.commands._common import (
    add_server_arguments,
    open_client,
    positive_int,
    print_json,
    with_lines,
)
from tritonclip_client.errors import InvalidInputError
from tritonclip_client.table import format_table
from tritonclip_client.templates import TEMPLATES

if TYPE_CHECKING:
    from tritonclip_client.results import Classification

HELP = "find the label of each image: zero-shot, or by a classifier in the repository"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the subcommand's parser."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--labels", action="append", metavar="LABEL", help="a label; given once for each")
    parser.add_argument("--labels-file", type=Path, metavar="FILE", help="UTF-8, one label a line")
    parser.add_argument(
        "--templates",
        action="append",
        metavar="NAME|TEXT",
        help=f"{', '.join(TEMPLATES)}, or a text with {{}} where the label goes, which may be given again (plain)",
    )
    parser.add_argument("--model", metavar="NAME", help="a classifier of the repository, with labels of its own")
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="labels an image (%(default)s)")
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Classify and print."""
    answers = _baked(args) if args.model else _zero_shot(args)
    if args.json:
        print_json([_as_json(image, answer) for image, answer in zip(args.images, answers, strict=True)])
    else:
        print(format_table(["image", "label", "probability"], _rows(args.images, answers)))
    return 0


def _zero_shot(args: argparse.Namespace) -> list[Classification]:
    labels = with_lines(args.labels, args.labels_file)
    if not labels:
        raise InvalidInputError("no labels given; give --labels once for each, or --labels-file, or --model")
    given = args.templates or ["plain"]
    templates = given[0] if len(given) == 1 else given
    with open_client(args) as client:
        return client.classify(args.images, labels, templates=templates, top_k=args.top_k)


def _baked(args: argparse.Namespace) -> list[Classification]:
    if args.labels or args.labels_file or args.templates:
        raise InvalidInputError(f"the classifier {args.model!r} has its labels; leave out --labels and --templates")
    with open_client(args) as client:
        answers = client.classify_baked(args.images, args.model)
    return [replace(answer, scores=answer.scores[: args.top_k]) for answer in answers]


def _as_json(image: str, answer: Classification) -> dict[str, object]:
    scores = [{"label": s.label, "probability": s.probability, "logit": s.logit} for s in answer.scores]
    return {"image": image, "scores": scores}


def _rows(images: list[str], answers: list[Classification]) -> list[tuple[object, ...]]:
    return [
        (image if rank == 0 else "", score.label, score.probability)
        for image, answer in zip(images, answers, strict=True)
        for rank, score in enumerate(answer.scores)
    ]
