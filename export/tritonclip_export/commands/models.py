"""`tritonclip models`: which CLIP models there are, their sizes and costs, and which the tests exercised."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritonclip_export.registry.catalog import Model, Row

HELP = "list the families of models: sizes, costs, preprocessing, and which were exercised by the tests"
_HEADER = ("config", "image", "context", "dim", "scoring", "M parameters", "GFLOPs", "weights", "exercised")
_LEGEND = (
    "M parameters and GFLOPs: image tower + text tower; for one image and one text of the full length, a "
    "multiply-add\nis two. weights: how many are released; `tritonclip models CONFIG` names them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "config", metavar="CONFIG", nargs="?", help="all that is known of one config (default: list all)"
    )
    which.add_argument("--family", metavar="NAME", help="only this family, such as siglip or eva")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Look the models up, and print them."""
    from tritonclip_export.registry.catalog import all_rows, find_model
    from tritonclip_export.registry.families import find_families

    rows = list(all_rows())
    if args.config is not None:
        model = find_model(args.config)
        rows = [row for row in rows if row.model == model]
    if args.family is not None:
        wanted = find_families(args.family)
        rows = [row for row in rows if row.family in wanted]
    if args.json:
        print(json.dumps(_json(rows), indent=2))
    elif args.config is not None:
        print(_details(rows))
    else:
        print(_list(rows))
    return 0


def _json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    from tritonclip_export.registry.families import family_of
    from tritonclip_export.registry.results import all_exercised

    models = dict.fromkeys(row.model for row in rows)
    return [
        {
            **model.to_json(),
            "families": [family.name for family in model.families()],
            "weights": [{**asdict(one), "family": family_of(model.config, one.name).name} for one in model.weights],
            "exercised": [asdict(record) for record in all_exercised() if record.config == model.config],
        }
        for model in models
    ]


def _list(rows: Sequence[Row]) -> str:
    from tritonclip_export.registry.results import all_exercised, exercised

    cells = [[*_cells(row.model), len(row.weights), exercised(row, all_exercised()) or "-"] for row in rows]
    header, rule, *lines = _align([_HEADER, *cells])
    printed = [header, rule]
    family = None
    for row, line in zip(rows, lines, strict=True):
        if row.family != family:
            family = row.family
            printed += ["", f"{family.name}: {family.about}"]
        printed.append(line)
    return "\n".join([*printed, "", _LEGEND])


def _cells(model: Model) -> list[object]:
    return [
        model.config,
        model.image_size,
        model.context_length,
        model.embed_dim,
        model.scoring,
        f"{model.image_parameters / 1e6:.1f} + {model.text_parameters / 1e6:.1f}",
        f"{model.image_flops / 1e9:.1f} + {model.text_flops / 1e9:.1f}",
    ]


def _details(rows: Sequence[Row]) -> str:
    from tritonclip_export.registry.results import all_exercised

    model = rows[0].model
    values = [*_cells(model), "CLIP's own" if model.tokenizer == "clip" else model.tokenizer, model.library]
    names = [*_HEADER[:7], "tokenizer", "library"]
    width = max(map(len, names))
    lines = [f"{name:{width}}  {value}" for name, value in zip(names, values, strict=True)]
    lines.append(f"{'activation':{width}}  {'QuickGELU' if model.quick_gelu else 'as the architecture has it'}")
    weights = [
        [
            one.name,
            row.family.name,
            _numbers(one.mean),
            _numbers(one.std),
            f"{one.interpolation}, {one.resize}",
            f"trained with QuickGELU: take {model.config}-quickgelu" if model.is_misfit(one) else "",
        ]
        for row in rows
        for one in row.weights
    ]
    columns = ["weights", "family", "mean", "std", "resize", "note"]
    lines += ["", *(_align([columns, *weights]) if weights else ["no released weights: architecture only"])]
    records = [record for record in all_exercised() if record.config == model.config]
    done = [[r.family, r.source, r.reference, r.image_cosine, r.text_cosine, r.max_abs, r.summary()] for r in records]
    columns = ["exercised", "source", "against", "image cosine", "text cosine", "max abs", "how"]
    lines += ["", *(_align([columns, *done]) if done else ["not exercised by the tests"])]
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _align(table: Sequence[Sequence[object]]) -> list[str]:
    """Lines of equal columns, numbers to the right, with a rule below the first."""
    cells = [[f"{cell:.7g}" if isinstance(cell, float) else str(cell) for cell in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(cell, (int, float)) for cell in table[-1]]
    padded = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return [padded[0], "  ".join("-" * width for width in widths), *padded[1:]]
