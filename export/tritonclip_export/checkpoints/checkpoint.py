"""A CLIP checkpoint as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.checkpoints.tokenization import Tokenization
from tritonclip_export.frameworks import torch


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP in the terms of the library that runs it: open_clip, or transformers where open_clip has no such model.

    Attributes:
        name: what the served model is called.
        architecture: the open_clip name, or the folder's, for people to read.
        model_cfg: open_clip's model config (embed_dim, vision_cfg, text_cfg, quick_gelu …), or `hf_towers.model_cfg`.
        preprocess_cfg: open_clip's PreprocessCfg as a dict, complete.
        state_dict: weights under that library's names, in the checkpoint's own dtype.
        tokenization: its tokenizer.
        source: what was read, for the manifest.
    """

    name: str
    architecture: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    tokenization: Tokenization
    source: dict[str, str] = field(default_factory=dict)

    def build(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """A float32 model in eval mode with these weights, or with `state_dict`'s.

        It has `encode_image` (float32 [N, 3, H, W], normalized) and `encode_text` (int64 [N, L]), both to [N, D].
        """
        model = new_model(self.model_cfg, empty=True)
        load_strictly(model, self.state_dict if state_dict is None else state_dict, self.architecture)
        return model
