"""Writes tests/golden/adapterhub: adapters that AdapterHub's library saved, and the features it computes with them.

`adapters` pins an older transformers, so this runs in an environment of its own:

    python3.11 -m venv adapters-env && adapters-env/bin/pip install adapters==1.3.0 torch numpy
    adapters-env/bin/python tests/golden/make_adapterhub.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
from adapters import (
    AdapterPlusConfig,
    DoubleSeqBnConfig,
    Fuse,
    IA3Config,
    LoRAConfig,
    ParBnConfig,
    SeqBnConfig,
)
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "support"))

import adapterhub_base as base  # noqa: E402

OUT = Path(__file__).with_name("adapterhub")

SINGLE: dict[str, Any] = {
    "pfeiffer": SeqBnConfig(reduction_factor=4),
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "parallel": ParBnConfig(reduction_factor=4),
    "scaled_parallel": ParBnConfig(reduction_factor=4, scaling="learned", non_linearity="leakyrelu"),
    "adapter_plus": AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
    "norms": DoubleSeqBnConfig(
        reduction_factor=4, ln_before=True, ln_after=True, adapter_residual_before_ln=True, non_linearity="gelu_new"
    ),
    "two_residuals": SeqBnConfig(reduction_factor=4, residual_before_ln=False, ln_after=True, non_linearity="gelu"),
    # Layers 0 and 1 are the text tower's.
    "visual_only": SeqBnConfig(reduction_factor=4, leave_out=[0, 1], non_linearity="quick_gelu"),
    "lora": LoRAConfig(
        r=2, alpha=6, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, leave_out=[1]
    ),
    "ia3": IA3Config(output_lora=True),
}
PARTS: dict[str, Any] = {
    "one": SeqBnConfig(reduction_factor=4),
    "two": SeqBnConfig(reduction_factor=8, non_linearity="tanh", scaling=0.5),
}
PARALLEL_PARTS: dict[str, Any] = {"left": ParBnConfig(reduction_factor=8), "right": ParBnConfig(reduction_factor=8)}
FUSED: dict[str, tuple[dict[str, Any], Any]] = {
    "fusion": (PARTS, "dynamic"),
    "fusion_static": (PARTS, "static"),
    "fusion_residual": (PARTS, {"residual_before": True, "query_before_ln": True, "value_before_softmax": False}),
    "fusion_parallel": (PARALLEL_PARTS, "dynamic"),
}


def main() -> None:
    """Write every case anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    features: dict[str, Any] = {}
    record(features, "plain", new_model())
    for case, config in SINGLE.items():
        model = new_model()
        model.add_adapter(case, config=config)
        randomize(model, f".{case}.")
        model.set_active_adapters(case)
        model.save_adapter(str(OUT / case), case, use_safetensors=case in ("houlsby", "ia3"))
        record(features, case, model)
    for case, (parts, config) in FUSED.items():
        model = new_model()
        for name, part in parts.items():
            model.add_adapter(name, config=part)
        model.add_adapter_fusion(list(parts), config=fusion_config(config))
        model.active_adapters = Fuse(*parts)
        randomize(model, "adapter")
        model.save_adapter_fusion(str(OUT / case), list(parts), use_safetensors=case == "fusion_static")
        for name in parts:
            model.save_adapter(str(OUT / case / name), name)
        record(features, case, model)
    vision = CLIPVisionModelWithProjection(clip_config().vision_config).eval()
    adapters.init(vision)
    load_base(vision)
    vision.add_adapter("vision_class", config=SINGLE["pfeiffer"])
    randomize(vision, ".vision_class.")
    vision.set_active_adapters("vision_class")
    vision.save_adapter(str(OUT / "vision_class"), "vision_class")
    with torch.no_grad():
        features["vision_class.image"] = vision(torch.from_numpy(base.pixel_values())).image_embeds.numpy()
    np.savez_compressed(OUT / "features.npz", **features)


def clip_config() -> CLIPConfig:
    """The CLIP of `adapterhub_base`."""
    text, vision = base.TEXT, base.VISION
    shared = {"hidden_act": "quick_gelu", "projection_dim": base.EMBED_DIM}
    return CLIPConfig(
        text_config={
            **shared,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context"],
            "vocab_size": text["vocabulary"],
            "eos_token_id": 2,
        },
        vision_config={
            **shared,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "image_size": vision["image"],
            "patch_size": vision["patch"],
        },
        projection_dim=base.EMBED_DIM,
    )


def new_model() -> Any:
    """A CLIPModel that can take adapters."""
    model = CLIPModel(clip_config()).eval()
    adapters.init(model)
    load_base(model)
    return model


def load_base(model: torch.nn.Module) -> None:
    """Set every weight but the scalars from its name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}
    for name, values in base.random_weights(shapes).items():
        model.state_dict()[name].copy_(torch.from_numpy(values))


def randomize(model: torch.nn.Module, part: str) -> None:
    """Set every adapter parameter whose name holds `part` from its name: as if it had been trained."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(torch.from_numpy(base.random_values(name, parameter.shape)))


def fusion_config(given: Any) -> Any:
    """The named configuration, or the dynamic one with changes."""
    if isinstance(given, str):
        return given
    return adapters.DynamicAdapterFusionConfig(**given)


def record(features: dict[str, Any], case: str, model: Any) -> None:
    """Keep both towers' features."""
    with torch.no_grad():
        image = model.get_image_features(torch.from_numpy(base.pixel_values()))
        text = model.get_text_features(torch.from_numpy(base.input_ids()))
    features[f"{case}.image"], features[f"{case}.text"] = image.numpy(), text.numpy()


if __name__ == "__main__":
    main()
