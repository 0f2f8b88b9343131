"""Adapter files merged into the small CLIP of `lora_models`, to be compared with another forward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lora_models import (
    Embeddings,
    disturb,
    hf_embeddings,
    images,
    largest_difference,
    open_clip_embeddings,
    peft_wrap,
    plain_model,
    quiet,
    texts,
)
from tritonclip_export.adapters.lora import MergeResult, merge_adapters, read_adapter
from tritonclip_export.frameworks import torch

Tensors = dict[str, torch.Tensor]

# Largest absolute difference of a normalized embedding.
TOLERANCE = 2e-5
# The adapted model must be far enough from the base for a wrong fold to show.
VISIBLE = 1e-2

# A regular expression of the text tower's modules, and of all its layers.
TEXT = r".*text_model.*({})"
ALL_OF_TEXT = TEXT.format("q_proj|k_proj|v_proj|out_proj|fc1|fc2")


def embeddings(model: Any, pixel_values: torch.Tensor | None = None) -> Embeddings:
    """L2-normalized image and text embeddings of a model with `encode_image` and `encode_text`."""
    pixel_values = images() if pixel_values is None else pixel_values
    with torch.no_grad():
        features = model.encode_image(pixel_values), model.encode_text(texts())
    image, text = (torch.nn.functional.normalize(feature, dim=-1) for feature in features)
    return image, text


def merge_file(state_dict: Tensors, path: Path, **options: Any) -> MergeResult:
    """Read the adapter and merge it."""
    return merge_adapters(state_dict, [(read_adapter(path, **options), 1.0)])


def assert_merged_equals(expected: Embeddings, state_dict: Tensors, path: Path, **options: Any) -> MergeResult:
    """The merged model gives `expected`, which at least one tower of the base does not."""
    base = open_clip_embeddings(state_dict)
    assert max((one - plain).abs().max().item() for one, plain in zip(expected, base, strict=True)) > VISIBLE
    result = merge_file(state_dict, path, **options)
    assert largest_difference(open_clip_embeddings(result.state_dict), expected) <= TOLERANCE
    return result


def peft_trained(config: Any, state_dict: Tensors) -> tuple[Embeddings, Tensors]:
    """PEFT's unmerged forward of a whole `CLIPModel`, and the trained tensors as PEFT names them in a file."""
    base = plain_model("hf", state_dict)
    tensors = peft_train(base, config)
    return hf_embeddings(base), tensors


def peft_train(base: Any, config: Any) -> Tensors:
    """Let PEFT adapt `base` in place and disturb what is trainable; returns that as PEFT names it in a file."""
    from peft import get_peft_model_state_dict

    model = peft_wrap(base, peft_config=config)
    disturb(model)
    with quiet():
        saved = get_peft_model_state_dict(model)
    return {key.removeprefix("base_model.model."): tensor for key, tensor in saved.items()}


def text_lora(targets: str = ALL_OF_TEXT, **settings: Any) -> Any:
    """PEFT's config of a LoRA."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, **settings})


# PEFT's names of a part to kohya's, which LyCORIS shares.
KOHYA_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def kohya_names(tensors: Mapping[str, torch.Tensor], encoder: str = "te", alpha: float | None = 8) -> Tensors:
    """The tensors as sd-scripts and LyCORIS save them."""
    renamed: Tensors = {}
    for key, tensor in tensors.items():
        found = re.match(r"(.+?)\.((?:lora|hada|lokr)_.+)$", key)
        assert found, key
        module = f"lora_{encoder}_{found[1].replace('.', '_')}"
        part = KOHYA_PARTS.get(found[2], found[2])
        renamed[f"{module}.{part}"] = tensor[:, None] if part == "dora_scale" else tensor
        if alpha is not None:
            renamed[f"{module}.alpha"] = torch.tensor(float(alpha))
    return renamed


def saved(path: Path, tensors: Mapping[str, torch.Tensor], **header: str) -> Path:
    """Write a safetensors file."""
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, header)
    return path
