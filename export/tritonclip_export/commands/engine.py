"""`tritonclip engine`: TensorRT engines of a model repository's two towers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.commands.probe_options import add_probes
from tritonclip_export.commands.settings_options import add_graph_batches, parse_graph_batches
from tritonclip_export.commands.sign_options import add_sign, signer_of
from tritonclip_export.settings import TENSORRT

if TYPE_CHECKING:
    from tritonclip_export.engine.build import EngineRequest

HELP = "build TensorRT engines of a model repository on the GPU that serves it, or compare its graphs with TensorRT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done and its options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions.add_parser("build", help=_BUILD, description=_BUILD))
    linter = actions.add_parser("lint", help=_LINT, description=_LINT)
    linter.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")
    linter.set_defaults(act=_lint)


_BUILD = "turn both towers into engines for this GPU, compare them with ONNX Runtime, and put them in place"
_LINT = "compare both towers with the operators and types that TensorRT is documented to take; needs no GPU"


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")
    for option, what in (
        ("--image-batch", "images at a time (default: 1 to what the repository serves, tuned for the most)"),
        ("--text-batch", "texts at a time (default: likewise)"),
        ("--text-length", "ids of a text (default: from the shortest bucket to the context)"),
    ):
        build.add_argument(option, metavar="MIN:OPT:MAX", help=what)
    build.add_argument("--workspace", metavar="GIB", type=float, help="GPU memory that a layer may use (default: all)")
    build.add_argument(
        "--version-compatible", action="store_true", help="engines that newer TensorRT of the same major runs too"
    )
    build.add_argument(
        "--timing-cache", metavar="FILE", type=Path, help="makes the next build faster (default: a file beside DIR)"
    )
    build.add_argument(
        "--runtime",
        choices=(TENSORRT,),
        help="serve the towers with the engines (default: leave the configs as they are)",
    )
    add_graph_batches(build)
    add_probes(build)
    add_sign(build)
    build.add_argument("--dry-run", action="store_true", help="check everything and print the trtexec lines; no GPU")
    build.set_defaults(act=_build)


def run(args: argparse.Namespace) -> int:
    """Build or lint."""
    status: int = args.act(args)
    return status


def _build(args: argparse.Namespace) -> int:
    from tritonclip_export.engine.build import build, plan, trtexec_lines
    from tritonclip_export.engine.tensorrt_api import TensorRT

    request = _request(args)
    if args.dry_run:
        print("\n".join(trtexec_lines(request, plan(request), machine=None)))
        return 0
    manifest = build(request, TensorRT)
    for model in manifest["engines"].values():
        for record in model:
            worst = min(comparison["cosine_min"] for comparison in record["parity"])
            print(
                f"{record['file']}: {record['gpu']}, TensorRT {record['tensorrt']}, built in {record['build_seconds']} "
                f"s, cosine >= {worst:.7f} against ONNX Runtime"
            )
    print(f"next: tritonclip serve {args.repository}" if args.runtime else "the encoders are served as before")
    return 0


def _request(args: argparse.Namespace) -> EngineRequest:
    from tritonclip_export.engine.build import EngineRequest
    from tritonclip_export.engine.profiles import Range, Ranges
    from tritonclip_export.errors import EngineError

    if args.graph_batches is not None and args.runtime is None:
        raise EngineError("--graph-batches without --runtime tensorrt does nothing; give both, or neither")
    given = (args.image_batch, args.text_batch, args.text_length)
    return EngineRequest(
        repository=args.repository,
        ranges=Ranges(*(None if text is None else Range.parse(text) for text in given)),
        workspace_gib=args.workspace,
        version_compatible=args.version_compatible,
        timing_cache=args.timing_cache,
        probe_images=args.probe_images,
        probe_texts=args.probe_texts,
        tensorrt_runtime=args.runtime is not None,
        graph_batches=None if args.graph_batches is None else parse_graph_batches(args.graph_batches),
        signer=signer_of(args),
    )


def _lint(args: argparse.Namespace) -> int:
    from tritonclip_export.engine.build import graphs
    from tritonclip_export.engine.lint import require, table

    files = graphs(args.repository)
    require(files)
    for file in files:
        print(f"{file}: its operators, types and opset are among those of {table()['source']}")
    return 0
