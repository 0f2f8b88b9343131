"""Adapter files merged into the small CLIP of `lora_models`, to be compared with another forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_models import Embeddings, largest_difference, open_clip_embeddings, pictures, texts
from tritonclip_export.frameworks import torch
from tritonclip_export.lora import MergeResult, merge_adapters, read_adapter

Tensors = dict[str, torch.Tensor]

# Largest absolute difference of a normalized embedding.
TOLERANCE = 2e-5
# The adapted model must be far enough from the base for a wrong fold to show.
VISIBLE = 1e-2


def embeddings(model: Any) -> Embeddings:
    """L2-normalized image and text embeddings of a model with `encode_image` and `encode_text`."""
    with torch.no_grad():
        features = model.encode_image(pictures()), model.encode_text(texts())
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
