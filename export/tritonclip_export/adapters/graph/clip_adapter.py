"""CLIP-Adapter (Gao et al.): a bottleneck after the image tower's projection, mixed with what came out of it.

f' = ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f, before the L2 norm; from gaopengcuhk/CLIP-Adapter, whose ratio is
0.2 in the code and in no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

RATIO = 0.2
# The names in a checkpoint of the adapter alone; one of the whole model puts its own before them.
_DOWN, _UP = "fc.0.weight", "fc.2.weight"
_LAYER = re.compile(r"(?:.*\.)?(fc\.\d+\.\w+)$")


class FeatureAdapter(nn.Module):
    """float32 [N, D] image features, not normalized, to [N, D]."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, ratio: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down.float())
        self.up = nn.Parameter(up.float())
        self.ratio = ratio

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        adapted = nn.functional.relu(nn.functional.linear(features, self.down))
        adapted = nn.functional.relu(nn.functional.linear(adapted, self.up))
        return self.ratio * adapted + (1 - self.ratio) * features


@dataclass(frozen=True)
class ClipAdapter(GraphAdapter):
    """A CLIP-Adapter, after an image tower of any kind; `ratio` is its share of the features."""

    ratio: float

    def attach(self, model: Any) -> None:
        """See `GraphAdapter.attach`."""
        visual = getattr(model, "visual", None)
        if visual is None:
            raise AdapterError(
                f"the CLIP-Adapter in {self.path} follows an image tower of open_clip, and the checkpoint is a "
                f"{type(model).__name__} of transformers; give open_clip's checkpoint of that model"
            )
        if hasattr(visual, "clip_adapter"):
            raise AdapterError("the image tower has a CLIP-Adapter already; give one")
        down, up = self.tensors[_DOWN], self.tensors[_UP]
        width = embedding_width(model)
        if width != up.shape[0]:
            raise AdapterError(
                f"the CLIP-Adapter in {self.path} is of {up.shape[0]} dimensions, and the model's embeddings have "
                f"{width}; give the checkpoint that it was trained on"
            )
        visual.clip_adapter = FeatureAdapter(down, up, self.ratio)
        visual.register_forward_hook(_adapt)

    def settings(self) -> str:
        """See `GraphAdapter.settings`."""
        return f"{self.method} {self.ratio!r}"


def is_clip_adapter(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a CLIP-Adapter's weights."""
    return {_DOWN, _UP} <= {match[1] for match in map(_LAYER.match, names) if match}


def read_clip_adapter(path: Path, file: Path, tensors: Mapping[str, torch.Tensor], ratio: float) -> ClipAdapter:
    """Read a CLIP-Adapter.

    Raises:
        AdapterError: its two layers do not follow each other, or there is more than them, or the ratio is none.
    """
    if not 0 <= ratio <= 1:
        raise AdapterError(f"the ratio of a CLIP-Adapter is {ratio}; allowed: 0 to 1, the paper's is {RATIO}")
    found = [(match[1], tensors[match[0]]) for match in map(_LAYER.match, tensors) if match]
    layers = dict(found)
    if len(found) != 2:
        raise AdapterError(
            f"{path} has the layers {', '.join(sorted(name for name, _ in found))}; a CLIP-Adapter has {_DOWN} and "
            f"{_UP}, once and without biases"
        )
    down, up = layers[_DOWN], layers[_UP]
    if down.ndim != 2 or up.shape != down.shape[::-1]:
        raise AdapterError(
            f"{_DOWN} and {_UP} in {path} are {tuple(down.shape)} and {tuple(up.shape)}; allowed: (C / 4, C) and "
            "(C, C / 4), C the embedding's width"
        )
    notes = (f"CLIP-Adapter mixed at ratio {ratio}, which no checkpoint records; the paper's code has {RATIO}",)
    return ClipAdapter(path, "CLIP-Adapter", (file,), layers, notes, ratio)


def embedding_width(model: Any) -> int | None:
    """The width of a model's embeddings, from what makes the text's; None where it does not say."""
    text = getattr(model, "text", model)
    projection = getattr(text, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if projection is not None:
        return int(projection.shape[-1])
    return getattr(text, "output_dim", None)


def _adapt(visual: Any, _: Any, features: Any) -> Any:
    # CoCa's image tower gives its tokens beside the features.
    if isinstance(features, tuple):
        return (visual.clip_adapter(features[0]), *features[1:])
    return visual.clip_adapter(features)
