"""Trains the demo checkpoint and its LoRA adapter, measures both, and writes every file of export/demo.

Written under --out: checkpoint/, adapter/, images/, labels.txt and figures.json. Each file or folder is
finished beside its place and then renamed, so that no half-written one is ever seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from safetensors.torch import save_file

from demo import evaluate, gallery
from demo.captions import HELD_OUT_PAIRS, LABELS, SPLITS, TRAINED_PAIRS, caption_of, random_scene
from demo.drawing import DOMAINS
from demo.model import MODEL_CONFIG, PREPROCESS_CONFIG, new_model, only_tokens, token_ids
from demo.training import MaskHead, Recipe, train
from tritonclip_export.frameworks import torch

BASE = Recipe(steps=3000, batch=64, learning_rate=1e-3, weight_decay=0.1, seed=1)
ADAPTER = Recipe(steps=2400, batch=64, learning_rate=6e-3, weight_decay=0.0, seed=2, shifted_share=0.7)
LORA_RANK, LORA_ALPHA, LORA_TARGETS = 16, 16, ["attn", "c_fc", "c_proj"]
EVALUATION_SEED = 7001
BASE_NAME = "tritonclip-demo"
_CAPTION_SURVEY = 20_000  # captions that are drawn to find every token the training can meet

Report = Callable[[str], None]


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a file or folder beside `path`, and puts it in `path`'s place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        write(made)
        with suppress(FileNotFoundError):
            path.rename(Path(scratch) / "replaced")
        made.rename(path)


def _used_token_ids(seed: int) -> Any:
    """The sorted ids of every token in the training's captions and in the labels."""
    rng = np.random.default_rng(seed)
    texts = {caption_of(random_scene(TRAINED_PAIRS, rng), rng).text for _ in range(_CAPTION_SURVEY)}
    return torch.unique(token_ids(sorted(texts | set(LABELS))))


def train_base(recipe: Recipe, report: Report) -> tuple[Any, list[float]]:
    """A trained `open_clip.CLIP` whose weights are rounded to float16, and the loss of every step."""
    torch.manual_seed(recipe.seed)
    model = new_model()
    with only_tokens(model, _used_token_ids(recipe.seed)):
        losses = train(model, MaskHead(model.visual), recipe, report)
    return model.half().float(), losses


def train_adapter(model: Any, recipe: Recipe, report: Report) -> tuple[Any, list[float]]:
    """The model under a trained LoRA, as a PeftModel, and the loss of every step."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    peft_model = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_TARGETS))
    losses = train(model, MaskHead(model.visual), recipe, report)
    return peft_model.eval(), losses


def write_checkpoint(model: Any, folder: Path) -> None:
    """Writes what open_clip reads as `local-dir:`; the weights are stored as float16."""
    folder.mkdir()
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def write_adapter(peft_model: Any, folder: Path) -> None:
    """Writes PEFT's two files, without its model card and without this machine's paths."""
    peft_model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = BASE_NAME
    config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def measure(model: Any, transform: Any, count: int) -> dict[str, dict[str, float]]:
    """Accuracy by domain and split, over `count` fresh images each."""
    encoders = evaluate.torch_encoders(model, transform)
    return {
        domain: {
            split: round(evaluate.accuracy(*encoders, list(evaluate.samples(split, domain, EVALUATION_SEED, count))), 4)
            for split in SPLITS
        }
        for domain in DOMAINS
    }


def measure_halves(peft_model: Any, transform: Any, count: int) -> dict[str, float]:
    """Accuracy on the shifted domain, over all pairs, by the towers that have their half of the adapter."""
    drawn = list(evaluate.samples("all", "shifted", EVALUATION_SEED, count))
    shown, wanted = [image for image, _ in drawn], np.array([index for _, index in drawn])
    encode_images, encode_texts = evaluate.torch_encoders(peft_model, transform)
    images, texts = encode_images(shown), encode_texts(LABELS)
    with peft_model.disable_adapter():
        plain_images, plain_texts = encode_images(shown), encode_texts(LABELS)
    combined = {
        "neither tower": (plain_images, plain_texts),
        "image tower": (images, plain_texts),
        "text tower": (plain_images, texts),
        "both towers": (images, texts),
    }
    return {name: round(float(np.mean(evaluate.nearest(*pair) == wanted)), 4) for name, pair in combined.items()}


def _versions() -> dict[str, str]:
    packages = ("torch", "open_clip_torch", "peft", "numpy", "Pillow", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _write_text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def base_stage(out: Path, recipe: Recipe, count: int, report: Report) -> list[float]:
    """Trains, measures and writes the checkpoint and its part of figures.json; returns the losses."""
    started = time.monotonic()
    trained, losses = train_base(recipe, report)
    publish(out / "checkpoint", lambda path: write_checkpoint(trained, path))
    seconds = round(time.monotonic() - started)
    model, transform = evaluate.load_checkpoint(out / "checkpoint")
    figures = {
        "task": f"the nearest of {len(LABELS)} labels (labels.txt, as they stand), by cosine",
        "held_out_pairs": [f"{color} {shape}" for shape, color in HELD_OUT_PAIRS],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "logit_scale": round(model.logit_scale.exp().item(), 3),
        "evaluation": {"seed": EVALUATION_SEED, "images_per_figure": count},
        "accuracy": {"base": measure(model, transform, count)},
        "training": {"threads": torch.get_num_threads(), "base": {**asdict(recipe), "seconds": seconds}},
        "versions": _versions(),
    }
    report(f"base: {figures['accuracy']}")
    publish(out / "figures.json", _write_text(json.dumps(figures, indent=2) + "\n"))
    return losses


def adapter_stage(out: Path, recipe: Recipe, count: int, report: Report) -> list[float]:
    """Trains, measures and writes the adapter of the checkpoint in `out` and its figures; returns the losses."""
    started = time.monotonic()
    model, transform = evaluate.load_checkpoint(out / "checkpoint")
    peft_model, losses = train_adapter(model, recipe, report)
    publish(out / "adapter", lambda path: write_adapter(peft_model, path))
    seconds = round(time.monotonic() - started)
    figures = json.loads((out / "figures.json").read_text())
    figures["adapter_parameters"] = sum(one.numel() for one in peft_model.parameters() if one.requires_grad)
    figures["accuracy"]["with_adapter"] = measure(peft_model, transform, count)
    figures["shifted_accuracy_by_adapted_tower"] = measure_halves(peft_model, transform, count)
    figures["training"]["adapter"] = {**asdict(recipe), "seconds": seconds}
    report(f"with the adapter: {figures['accuracy']['with_adapter']}")
    publish(out / "figures.json", _write_text(json.dumps(figures, indent=2) + "\n"))
    return losses


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="default: export/demo")
    parser.add_argument("--base-steps", type=int, default=BASE.steps, help="default: %(default)s")
    parser.add_argument("--adapter-steps", type=int, default=ADAPTER.steps, help="default: %(default)s")
    parser.add_argument(
        "--images", type=int, default=1000, help="fresh images for each measured figure; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default: %(default)s")
    parser.add_argument("--adapter-only", action="store_true", help="keep the checkpoint that is in --out")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the same arguments give the same weights on the same machine."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    if not args.adapter_only:
        base_stage(args.out, replace(BASE, steps=args.base_steps), args.images, _say)
    adapter_stage(args.out, replace(ADAPTER, steps=args.adapter_steps), args.images, _say)
    publish(args.out / "images", gallery.write_images)
    publish(args.out / "labels.txt", _write_text("\n".join(LABELS) + "\n"))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
