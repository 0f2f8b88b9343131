"""`tritonclip export`: checkpoint and adapters to a Triton model repository."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonclip_export.commands.probe_options import add_probes
from tritonclip_export.commands.settings_options import add_settings, given_settings
from tritonclip_export.commands.sign_options import add_sign, signer_of
from tritonclip_export.settings import DALI, ONNXRUNTIME, PYTHON

# Of `adapters.lora.compose`, which imports torch.
METHODS = ("sum", "ties", "dare", "dare_ties")
# What the serving spec calls them.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
# glibc's mallopt: larger allocations are mapped, and their pages go back when they are freed.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 1 << 20

HELP = "merge adapters into a CLIP checkpoint and write a Triton model repository"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="a directory (open_clip, or Hugging Face CLIP, SigLIP, SigLIP 2, Chinese-CLIP), an architecture of "
        "`tritonclip models`, or hf-hub:ORG/REPO",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the model repository to write; must not exist")
    parser.add_argument(
        "--adapter",
        metavar="PATH[=WEIGHT]",
        action="append",
        default=[],
        help="an adapter's directory or file, or a fine-tuned checkpoint as a task vector; repeat for several, each "
        "with its weight (default 1)",
    )
    _add_adapters(parser.add_argument_group("adapters"))
    _add_weights(parser.add_argument_group("weights of an architecture (one of the first three)"))
    _add_limits(parser.add_argument_group("serving"))
    add_probes(parser.add_argument_group("parity gate"))
    parser.add_argument("--force", action="store_true", help="replace the model repository that stands in OUT")
    add_sign(parser)


def _add_adapters(adapters: argparse._ArgumentGroup) -> None:
    adapters.add_argument(
        "--lora-alpha", metavar="N", type=float, help="LoRA's alpha, where the file does not store it"
    )
    adapters.add_argument("--lora-rank", metavar="N", type=int, help="LoRA's rank, where a file does not show it")
    adapters.add_argument("--adapter-format", metavar="FORMAT[:CHOICE]", help="format of a file, where it is ambiguous")
    adapters.add_argument(
        "--allow-partial-adapter",
        action="store_true",
        help="accept an adapter that lacks tensors for some of its modules, which then stay unchanged",
    )
    adapters.add_argument(
        "--merge-method",
        choices=METHODS,
        default="sum",
        help="how several adapters are combined (default: %(default)s)",
    )
    adapters.add_argument("--merge-density", metavar="SHARE", type=float, help="the share of values TIES and DARE keep")
    adapters.add_argument("--merge-seed", metavar="N", type=int, help="random seed of DARE (default: 0)")


def _add_weights(weights: argparse._ArgumentGroup) -> None:
    weights.add_argument(
        "--weights", metavar="FILE", type=Path, help="a state dict; needs --like where the name has tags"
    )
    weights.add_argument("--pretrained", metavar="TAG", help="one of open_clip's tags, fetched from its hub")
    weights.add_argument("--random-weights", metavar="SEED", type=int, help="untrained, to measure speed with")
    weights.add_argument("--like", metavar="TAG", help="the tag whose preprocessing and activation FILE has")
    weights.add_argument(
        "--tokenizer",
        metavar="DIR",
        type=Path,
        help="the tokenizer's files, and config.json of a Hugging Face text tower (default: the checkpoint's own)",
    )
    weights.add_argument(
        "--stretch-context",
        action="store_true",
        help="stretch 77 text positions to Long-CLIP's 248, to fine-tune or try long captions without training",
    )


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the served graphs: fp16 is for GPUs, int8 for CPUs (default: %(default)s)",
    )
    limits.add_argument("--name", help="what the served model calls itself (default: the checkpoint's name)")
    add_settings(limits, (PYTHON, ONNXRUNTIME))


def run(args: argparse.Namespace) -> int:
    """Export, and print what was proven."""
    from tritonclip_export.adapters.lora.compose import Composition
    from tritonclip_export.adapters.option import parse_adapter
    from tritonclip_export.interrupts import ended_by_sigterm_as_by_ctrl_c
    from tritonclip_export.pipeline import ExportRequest, export
    from tritonclip_export.settings import Settings

    _require_adapter(args)
    _return_freed_memory()
    settings = Settings(**{"preprocess_threads": len(os.sched_getaffinity(0)), **given_settings(args)})
    request = ExportRequest(
        source=args.source,
        out=args.out,
        adapters=[parse_adapter(text) for text in args.adapter],
        composition=Composition(args.merge_method, args.merge_density, args.merge_seed or 0),
        lora_alpha=args.lora_alpha,
        lora_rank=args.lora_rank,
        adapter_format=args.adapter_format,
        allow_partial_adapter=args.allow_partial_adapter,
        weights=args.weights,
        pretrained=args.pretrained,
        like=args.like,
        random_weights=args.random_weights,
        stretch_context=args.stretch_context,
        tokenizer=args.tokenizer,
        name=args.name,
        precision=PRECISIONS[args.precision],
        settings=settings,
        probe_images=args.probe_images,
        probe_texts=args.probe_texts,
        force=args.force,
        signer=signer_of(args),
    )
    with ended_by_sigterm_as_by_ctrl_c():
        written = export(request)
    _print_summary(args.out, written)
    return 0


def _return_freed_memory() -> None:
    """Let glibc return freed tensors at once; it keeps ever larger ones for later, up to half a model."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _require_adapter(args: argparse.Namespace) -> None:
    """Reject adapter options without --adapter."""
    from tritonclip_export.errors import AdapterError

    given = {
        "--lora-alpha": args.lora_alpha,
        "--lora-rank": args.lora_rank,
        "--adapter-format": args.adapter_format,
        "--allow-partial-adapter": args.allow_partial_adapter or None,
        "--merge-method": None if args.merge_method == "sum" else args.merge_method,
        "--merge-density": args.merge_density,
        "--merge-seed": args.merge_seed,
    }
    named = [option if value is True else f"{option} {value}" for option, value in given.items() if value is not None]
    if named and not args.adapter:
        raise AdapterError(f"{' and '.join(named)} without an adapter; add --adapter PATH, or leave it out")
    if args.merge_seed is not None and "dare" not in args.merge_method:
        raise AdapterError(
            f"--merge-seed {args.merge_seed} given, and --merge-method {args.merge_method} draws nothing; leave it "
            "out, or choose dare or dare_ties"
        )


def _print_summary(out: Path, manifest: dict[str, Any]) -> None:
    parity, spec = manifest["parity"], manifest["spec"]
    worst = min(parity["comparisons"], key=lambda comparison: comparison["cosine_min"])
    described = f"{spec['name']}, {spec['precision']}, {spec['embedding_dim']} dimensions"
    print(f"{out}: {described}, fingerprint {spec['fingerprint'][:12]}")
    print(
        f"parity against {parity['reference']}: cosine >= {worst['cosine_min']:.7f} on {parity['images']} "
        f"images and {parity['texts']} texts, same zero-shot answer on {parity['top1_agreement']:.0%}"
    )
    if parity["caveat"] is not None:
        print(f"warning: the merge was not compared with the unmerged adapters. {parity['caveat']}", file=sys.stderr)
    for tower, layers in parity["layers"].items():
        for layer in layers["islands"]:
            print(
                f"note: {layer['name']} of the {tower} tower stays in float32: values up to {layer['maximum']:.0f}, "
                f"attention scores up to {layer['scores']:.0f}",
                file=sys.stderr,
            )
    for note in manifest["merge"].get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    container = manifest["settings"]["preprocess"] == DALI or spec["runtime"] != PYTHON
    print(f"next: tritonclip serve {out}{' --server path' if container else ''}")
