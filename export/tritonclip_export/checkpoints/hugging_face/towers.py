"""Hugging Face's two-tower models that open_clip does not have, as they are: names, activations and pooling.

Each class adds to its Hugging Face base `encode_image` (float32 [N, 3, H, W], normalized, to [N, D]) and
`encode_text` (int64 [N, L] to [N, D]); neither normalizes what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclip_export.errors import CheckpointError

from tritonclip_export.frameworks import torch  # isort: skip - before transformers, which imports torchvision

from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from tritonclip_export.checkpoints.hugging_face.naflex import inside, split_rows


class Siglip(SiglipModel):
    """SigLIP, and SigLIP 2 at a fixed resolution, which Hugging Face keeps in the same class."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See the module."""
        pooled: torch.Tensor = self.vision_model(pixel_values=pixel_values).pooler_output
        return pooled

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the module; no token is masked, padding was part of the training."""
        pooled: torch.Tensor = self.text_model(input_ids=input_ids).pooler_output
        return pooled


class Siglip2(Siglip2Model):
    """SigLIP 2 with NaFlex, whose `pixel_values` are rows, see `naflex`."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float32 [N, 1 + max_num_patches, 3 * patch_size²], the patches normalized, to [N, D]."""
        patches, grids = split_rows(pixel_values)
        return self.encode_patches(patches, grids, inside(grids, patches.shape[1]).int())

    def encode_patches(self, patches: torch.Tensor, grids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Patches float32 [N, L, 3 * patch_size²] and grids int64 [N, 2] to [N, D].

        `mask`: int32 [N, L], 1 for what is no padding; or float32 [N, 1, 1, L], added to every attention score.
        """
        tower = self.vision_model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grids)
        pooled: torch.Tensor = tower.pooler_output
        return pooled

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the module; padding is masked where the checkpoint's tokenizer hands a mask to the model."""
        masked_id = getattr(self.config, "masked_id", None)
        mask = None if masked_id is None else (input_ids != torch.tensor(masked_id)).long()
        pooled: torch.Tensor = self.text_model(input_ids=input_ids, attention_mask=mask).pooler_output
        return pooled


class ChineseClip(ChineseCLIPModel):
    """Chinese-CLIP: a ViT, and a BERT whose padding is masked and whose first token is the text."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See the module."""
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        features: torch.Tensor = self.visual_projection(pooled)
        return features

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the module."""
        text: Any = self.config.text_config
        mask = (input_ids != torch.tensor(text.pad_token_id)).long()
        hidden = self.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        features: torch.Tensor = self.text_projection(hidden[:, 0])
        return features


@dataclass(frozen=True)
class HfFamily:
    """One `model_type` of a config.json.

    Attributes:
        embed_dim: reads the width of both embeddings off the config.
        context_length: tokens that texts are padded to; None: the text config's max_position_embeddings.
        vision_cfg: extracts the image's requirements from the vision config.
    """

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    embed_dim: Callable[[Any], int]
    context_length: int | None = None
    vision_cfg: Callable[[Any], dict[str, int]] = lambda vision: {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }


def _naflex_vision_cfg(vision: Any) -> dict[str, int]:
    """`num_patches` marks a tower that takes patches; `image_size` is that of a square with one for each position."""
    side = math.isqrt(vision.num_patches)
    if side * side != vision.num_patches or not isinstance(vision.patch_size, int) or vision.num_channels != 3:
        raise CheckpointError(
            f"vision_config has num_patches {vision.num_patches}, patch_size {vision.patch_size} and num_channels "
            f"{vision.num_channels}; allowed: a square number of positions, square patches and 3 channels"
        )
    return {
        "image_size": side * vision.patch_size,
        "patch_size": vision.patch_size,
        "num_patches": vision.num_patches,
    }


def _siglip_width(config: Any) -> int:
    return int(config.text_config.projection_size or config.text_config.hidden_size)


FAMILIES = {
    "siglip": HfFamily(SiglipConfig, Siglip, _siglip_width),
    # Its processor pads to 64.
    "siglip2": HfFamily(Siglip2Config, Siglip2, _siglip_width, 64, _naflex_vision_cfg),
    # BERT has 512 positions; Chinese-CLIP was trained and is evaluated on 52.
    "chinese_clip": HfFamily(ChineseCLIPConfig, ChineseClip, lambda config: config.projection_dim, 52),
}


def model_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as the model config of a `Checkpoint`: open_clip's fields that are shared, and `hf_config`.

    Raises:
        CheckpointError: another model type, or towers of different widths.
    """
    family = _family(config)
    parsed: Any = family.config.from_dict(dict(config))
    vision, text = parsed.vision_config, parsed.text_config
    if not getattr(vision, "vision_use_head", True):
        raise CheckpointError("the image tower has no head (vision_use_head is false), so it pools no embedding")
    if family.embed_dim is _siglip_width and vision.hidden_size != family.embed_dim(parsed):
        raise CheckpointError(
            f"the image tower gives {vision.hidden_size} values and the text tower {family.embed_dim(parsed)}; "
            "the towers are of two models"
        )
    return {
        "embed_dim": family.embed_dim(parsed),
        "vision_cfg": family.vision_cfg(vision),
        "text_cfg": {
            "context_length": min(family.context_length or math.inf, text.max_position_embeddings),
            "vocab_size": text.vocab_size,
        },
        "hf_config": dict(config),
    }


def with_processor_settings(
    model_cfg: Mapping[str, Any], max_num_patches: int, masked_id: int | None
) -> dict[str, Any]:
    """A SigLIP 2's model config with what its processor alone knows.

    Args:
        model_cfg: of `model_cfg`.
        max_num_patches: that the image tower reads.
        masked_id: that the text tower is told not to attend to, if any.
    """
    vision_cfg = {**model_cfg["vision_cfg"], "max_num_patches": max_num_patches}
    told = {} if masked_id is None else {"masked_id": masked_id}
    return {**model_cfg, "vision_cfg": vision_cfg, "hf_config": {**model_cfg["hf_config"], **told}}


def new_hf_model(config: Mapping[str, Any]) -> Any:
    """The model of a config.json with untrained weights, float32, in eval mode."""
    family = _family(config)
    with torch.no_grad():
        model: Any = family.model(family.config.from_dict(dict(config)))
    return model.float().eval()


def _family(config: Mapping[str, Any]) -> HfFamily:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(
            f"the checkpoint is a model of type {kind!r}; allowed: clip, {', '.join(FAMILIES)}. Give one of these, or "
            "an open_clip directory"
        )
    return FAMILIES[kind]
