"""The CLIP of the AdapterHub golden files in open_clip, its features, and its two served graphs as ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import adapterhub_base as base
from tritonclip_export.adapters.graph import read_graph_adapter
from tritonclip_export.checkpoints.key_mapping import from_hf, to_hf
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.comparison import OnnxTower
from tritonclip_export.towers.towers import served_towers

torch.set_num_threads(1)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "adapterhub"
VISION_WIDTH, TEXT_WIDTH = int(base.VISION["width"]), int(base.TEXT["width"])
MODEL_CFG: dict[str, Any] = {
    "embed_dim": base.EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": base.VISION["image"],
        "layers": base.VISION["layers"],
        "width": VISION_WIDTH,
        "head_width": VISION_WIDTH // base.VISION["heads"],
        "patch_size": base.VISION["patch"],
    },
    "text_cfg": {
        "context_length": base.TEXT["context"],
        "vocab_size": base.TEXT["vocabulary"],
        "width": TEXT_WIDTH,
        "heads": base.TEXT["heads"],
        "layers": base.TEXT["layers"],
    },
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def state_dict(model_cfg: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """The golden files' weights under open_clip's names, or those of another config that are made alike."""
    plain = new_model(model_cfg or MODEL_CFG).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in to_hf(plain).items()}
    values = {name: torch.from_numpy(array) for name, array in base.random_weights(shapes).items()}
    return {**from_hf(values), "logit_scale": plain["logit_scale"]}


def build(model_cfg: dict[str, Any] | None = None, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The open_clip model with those weights, or with others of another config."""
    model = new_model(model_cfg or MODEL_CFG)
    load_strictly(model, weights or state_dict(), "test")
    return model


def pixel_values() -> torch.Tensor:
    """float32 [5, 3, 16, 16]."""
    return torch.from_numpy(base.pixel_values())


def input_ids() -> torch.Tensor:
    """int64 [5, 12]."""
    return torch.from_numpy(base.input_ids())


def image_features(model: Any) -> torch.Tensor:
    """float32 [5, D], not normalized."""
    with torch.no_grad():
        return model.encode_image(pixel_values())


def text_features(model: Any) -> torch.Tensor:
    """float32 [5, D], not normalized."""
    with torch.no_grad():
        return model.encode_text(input_ids())


def golden(case: str, tower: str) -> torch.Tensor:
    """The features that AdapterHub's library computed."""
    with np.load(GOLDEN / "features.npz") as arrays:
        return torch.from_numpy(arrays[f"{case}.{tower}"])


def export_onnx(model: Any, tower: str, path: Path) -> OnnxTower:
    """One served graph of `model` as ONNX: opset 20, any batch, the texts of any length from 2 on."""
    image, text = served_towers(model, MODEL_CFG, MEAN, STD)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=base.TEXT["context"])
    side = base.VISION["image"]
    served, example, shapes = {
        "image": (image, torch.zeros(2, side, side, 3, dtype=torch.uint8), {0: batch}),
        "text": (text, torch.zeros(2, base.TEXT["context"] - 1, dtype=torch.int32), {0: batch, 1: length}),
    }[tower]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served, (example,), path, dynamic_shapes=(shapes,), opset_version=20, dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
    return OnnxTower(path)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dassl(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as dassl writes it: with the optimizer's state and a scheduler that is an object."""
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, 10)
    training = {
        "epoch": 4,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 3, "successor": scheduler, "base_lrs": [0.1]},
        "val_result": np.float64(71.5),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, **training}, path)
    (path.parent / "checkpoint").write_text(path.name)
    return path


def attached(path: Path, **options):
    model = build()
    read_graph_adapter(path, **options).attach(model)
    return model


def save(path: Path, **tensors: torch.Tensor) -> Path:
    torch.save({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def clip_adapter_file(folder: Path) -> Path:
    width = MODEL_CFG["embed_dim"]
    weights = {"fc.0.weight": noise(width // 4, width), "fc.2.weight": noise(width, width // 4)}
    return dassl(folder / "clip_adapter" / "model-best.pth.tar", weights)


def maple_weights(depth: int) -> dict[str, torch.Tensor]:
    text = 16
    weights = {
        "ctx": noise(2, text),
        "proj.weight": noise(VISION_WIDTH, text, seed=1),
        "proj.bias": noise(VISION_WIDTH, seed=2),
    }
    for layer in range(depth):
        weights |= {
            f"compound_prompts_text.{layer}": noise(2, text, seed=3),
            f"compound_prompt_projections.{layer}.weight": noise(VISION_WIDTH, text, seed=4),
            f"compound_prompt_projections.{layer}.bias": noise(VISION_WIDTH, seed=5),
        }
    weights["token_prefix"] = noise(4, 1, text)
    whole = {f"prompt_learner.{name}": value.half() for name, value in weights.items()}
    return {**whole, "image_encoder.conv1.weight": noise(VISION_WIDTH, 3, 8, 8)}
