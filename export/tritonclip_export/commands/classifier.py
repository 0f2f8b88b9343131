"""`tritonclip classifier`: adds a classifier over fixed labels to a model repository."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.commands.sign_options import add_sign, signer_of

if TYPE_CHECKING:
    from tritonclip_export.repository.classifier.classifier_head import ClassifierHead
    from tritonclip_export.spec import ServingSpec

HELP = "add a model classify_NAME to a model repository: the best of fixed labels, without the text tower"
POSITIONS = ("end", "middle", "front")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the ways to make a classifier and their options."""
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for name, (add, make, text) in _METHODS.items():
        method = methods.add_parser(name, help=text, description=text)
        method.add_argument("repository", metavar="DIR", type=Path, help="a directory that `tritonclip export` wrote")
        method.add_argument("--name", required=True, help="letters, digits, _ and -; the model is called classify_NAME")
        method.add_argument("--labels", metavar="FILE", type=Path, required=True, help="UTF-8, one label a line")
        add(method)
        method.add_argument("--top-k", metavar="K", type=int, help="labels in an answer (5, or all of fewer)")
        method.add_argument("--force", action="store_true", help="replace the classifier of this name")
        add_sign(method)
        method.set_defaults(make=make)


def run(args: argparse.Namespace) -> int:
    """Make the classifier and publish it."""
    from tritonclip_export.progress import step
    from tritonclip_export.repository.classifier.prompts import read_labels
    from tritonclip_export.repository.classifier.publish import check_name, model_names, publish
    from tritonclip_export.repository.manifest import verify
    from tritonclip_export.spec import ServingSpec

    signer = signer_of(args)
    with step("verify the repository"):
        spec = ServingSpec.from_dict(verify(args.repository)["spec"])
    check_name(args.repository, args.name, force=args.force)
    labels = read_labels(args.labels)
    head: ClassifierHead = args.make(args, labels, spec)
    publish(args.repository, args.name, head, top_k=args.top_k, force=args.force, signer=signer)
    print(f"{args.repository}: added {model_names(args.name)[1]}, {len(labels)} labels ({head.method})")
    print("next: start the server again, or load both of its models")
    return 0


def _add_templates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--templates",
        metavar="NAME|FILE|TEXT",
        default="plain",
        help="openai, simple, photo, plain, a file with one template a line, or one with {} where the label goes "
        "(%(default)s)",
    )


def _prompts(args: argparse.Namespace, labels: list[str], spec: ServingSpec) -> ClassifierHead:
    from tritonclip_export.progress import step
    from tritonclip_export.repository.classifier.methods import from_prompts
    from tritonclip_export.repository.classifier.prompts import resolve_templates

    templates = resolve_templates(args.templates)
    with step(f"embed {len(labels)} labels in {len(templates)} templates"):
        return from_prompts(args.repository, labels, templates, spec.scoring)


def _add_tip_adapter(parser: argparse.ArgumentParser) -> None:
    _add_templates(parser)
    parser.add_argument("--keys", metavar="FILE", type=Path, required=True, help="keys_Nshots.pt, or best_F_Nshots.pt")
    parser.add_argument("--tuned", action="store_true", help="the keys are best_F_Nshots.pt of Tip-Adapter-F")
    parser.add_argument("--values", metavar="FILE", type=Path, required=True, help="values_Nshots.pt")
    parser.add_argument("--alpha", type=float, required=True, help="the weight that the search of the training found")
    parser.add_argument("--beta", type=float, required=True, help="the sharpness that it found")


def _tip_adapter(args: argparse.Namespace, labels: list[str], spec: ServingSpec) -> ClassifierHead:
    from tritonclip_export.repository.classifier.methods import from_tip_adapter

    zero_shot = _prompts(args, labels, spec)
    return from_tip_adapter(zero_shot, args.keys, args.values, args.alpha, args.beta, tuned=args.tuned)


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--matrix", metavar="FILE", type=Path, required=True, help=".npy, .safetensors or .pt: one row a label"
    )
    parser.add_argument("--key", help="which matrix of the file")
    parser.add_argument("--normalize", action="store_true", help="class embeddings that are not of unit length")
    parser.add_argument(
        "--logit-scale", type=float, help="the weights of a linear head, with this factor on its logits"
    )


def _matrix(args: argparse.Namespace, labels: list[str], spec: ServingSpec) -> ClassifierHead:
    from tritonclip_export.repository.classifier.methods import from_matrix

    options = {"key": args.key, "logit_scale": args.logit_scale, "normalize": args.normalize}
    return from_matrix(args.matrix, labels, spec.embedding_dim, spec.scoring, **options)


def _add_coop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-learner", metavar="FILE", type=Path, required=True, help="prompt_learner/model.pth.tar-EPOCH"
    )
    parser.add_argument(
        "--checkpoint", required=True, help="the CLIP that was exported, as `tritonclip export` takes it"
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="of an architecture, as in `tritonclip export`")
    parser.add_argument("--pretrained", metavar="TAG", help="of an architecture")
    parser.add_argument("--like", metavar="TAG", help="the tag whose preprocessing and activation FILE has")
    parser.add_argument(
        "--class-token-position", choices=POSITIONS, default="end", help="as in the training (%(default)s)"
    )


def _coop(args: argparse.Namespace, labels: list[str], spec: ServingSpec) -> ClassifierHead:
    from tritonclip_export.checkpoints.load import load_checkpoint
    from tritonclip_export.repository.classifier.coop import from_coop

    source = {"weights": args.weights, "pretrained": args.pretrained, "like": args.like}
    checkpoint = load_checkpoint(args.checkpoint, **source)
    position = args.class_token_position
    return from_coop(args.repository, args.prompt_learner, checkpoint, labels, spec.scoring, position)


_Make = Callable[[argparse.Namespace, list[str], "ServingSpec"], "ClassifierHead"]
_METHODS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], _Make, str]] = {
    "build": (_add_templates, _prompts, "class embeddings from the mean of every label's prompts"),
    "tip-adapter": (_add_tip_adapter, _tip_adapter, "prompts, and the few-shot cache of Tip-Adapter or Tip-Adapter-F"),
    "matrix": (_add_matrix, _matrix, "class embeddings or a linear head that were made elsewhere"),
    "coop": (_add_coop, _coop, "the prompts that CoOp learned"),
}
