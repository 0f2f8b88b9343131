"""The two graphs exactly as they are served.

`ImageTower`: uint8 pixels in; cast, mean/std, layout, tower, projection and L2 norm inside.
`TextTower`: token ids of any length up to the context in; the causal sequence is cut to that length,
which leaves the end-of-text embedding unchanged, because no token sees a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as functional
from torch import nn

from tritonclip_export.checkpoints.hugging_face.naflex import MASKED, PatchEmbeddings, inside, split_rows
from tritonclip_export.frameworks import open_clip, torch

_HF_POOLING = {"siglip": "last", "siglip2": "last", "chinese_clip": "first"}
# open_clip's poolers of Hugging Face text towers.
_HF_POOLERS = {"mean_pooler": "mean", "cls_pooler": "first", "cls_last_hidden_state_pooler": "first"}


class ImageTower(nn.Module):
    """`pixels` uint8 [N, H, W, 3] to `image_embedding` float32 [N, D], L2-normalised."""

    model: Any
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        deviation = torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * deviation)).float().reshape(1, 3, 1, 1))
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.register_buffer("shift", shift.float().reshape(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed `pixels`."""
        # The cast comes first: TensorRT knows uint8 as the type of an input and of nothing else.
        values = pixels.float().permute(0, 3, 1, 2) * self.scale + self.shift
        return functional.normalize(self.model.encode_image(values).float(), dim=-1)


class PatchTower(ImageTower):
    """`pixels` uint8 [N, 1 + max_num_patches, 3 * patch_size²], see `naflex`, to `image_embedding` float32 [N, D]."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], max_num_patches: int) -> None:
        super().__init__(model, mean, std)
        vision = model.vision_model
        vision.embeddings = PatchEmbeddings(vision.embeddings, max_num_patches)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed `pixels`."""
        # The cast comes first, as in `ImageTower`.
        patches, grids = split_rows(pixels.float())
        values = patches.unflatten(-1, (-1, 3)) * self.scale.flatten() + self.shift.flatten()
        mask = (1 - inside(grids, patches.shape[1]).float()) * MASKED
        features = self.model.encode_patches(values.flatten(2), grids, mask[:, None, None])
        return functional.normalize(features.float(), dim=-1)


class FullTextTower(nn.Module):
    """`input_ids` int32 [N, context] to `text_embedding` float32 [N, D], L2-normalised.

    For every tower whose embedding depends on the padding: no causal mask, a class token, pooling at the last position.
    """

    any_length = False
    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed `input_ids`."""
        return functional.normalize(self.model.encode_text(input_ids.long()).float(), dim=-1)


class TextTower(nn.Module):
    """`input_ids` int32 [N, L], L up to the context, to `text_embedding` float32 [N, D], L2-normalised."""

    any_length = True
    attn_mask: torch.Tensor

    def __init__(self, model: Any, eos_id: int | None) -> None:
        super().__init__()
        self.eos_id = eos_id
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed `input_ids`; pools at the end of text: the first `eos_id`, or the largest id of each row."""
        length = input_ids.shape[1]
        hidden = self.token_embedding(input_ids) + self.positional_embedding[:length]
        hidden = self.transformer(hidden, attn_mask=self.attn_mask[:length, :length])
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        ends = input_ids if self.eos_id is None else (input_ids == self.eos_id).int()
        pooled = self.ln_final(hidden)[rows, ends.argmax(dim=-1)]
        return functional.normalize(self._project(pooled).float(), dim=-1)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        if self.text_projection is None:
            return pooled
        if isinstance(self.text_projection, nn.Linear):
            return functional.linear(pooled, self.text_projection.weight, self.text_projection.bias)
        return torch.matmul(pooled, self.text_projection)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of one sequence with itself, as one projection and one attention.

    The same numbers from a fifth fewer ONNX nodes, and exportable with a dynamic sequence length.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim)
        self.qkv.weight = attention.in_proj_weight
        self.qkv.bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Attend within `query` [N, L, width]; `key` and `value` are the same tensor."""
        batch, length, width = query.shape
        qkv = self.qkv(query).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if attn_mask is not None and attn_mask.ndim == 3:
            # nn.MultiheadAttention takes one mask a text and head, [N * heads, L, L].
            attn_mask = attn_mask.reshape(batch, self.heads, length, length)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width)), None


def served_towers(
    model: Any, model_cfg: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> tuple[ImageTower, TextTower | FullTextTower]:
    """Wrap `model` into its two served graphs; its attention modules are replaced in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and _is_self_attention(child, parent):
                setattr(parent, name, SelfAttention(child))
    pooling, any_length = text_pooling(model_cfg)
    most = model_cfg["vision_cfg"].get("max_num_patches")
    image = PatchTower(model, mean, std, most) if most else ImageTower(model, mean, std)
    if not any_length:
        return image.eval(), FullTextTower(model).eval()
    native = getattr(model, "text", model)
    text = TextTower(native, open_clip.CLIPTextCfg(**model_cfg["text_cfg"]).eos_id if pooling == "eos" else None)
    return image.eval(), text.eval()


def text_pooling(model_cfg: Mapping[str, Any]) -> tuple[str, bool]:
    """Which position becomes the embedding, and whether that embedding is the same at every padded length.

    It is where no token sees a later one and the end of the text is the one that is pooled.
    """
    if "hf_config" in model_cfg:
        return _HF_POOLING[model_cfg["hf_config"]["model_type"]], False
    text = open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    if text.hf_model_name:
        return _HF_POOLERS.get(text.hf_pooler_type, "mean"), False
    if text.embed_cls:
        return "class", False
    return text.pool_type, text.pool_type in ("argmax", "eos") and not text.no_causal_mask


def masked_id(model_cfg: Mapping[str, Any]) -> int | None:
    """The id that the text tower takes for padding and does not attend to; None where it attends to every one."""
    if "hf_config" in model_cfg:
        hf_config = model_cfg["hf_config"]
        if "masked_id" in hf_config:
            return int(hf_config["masked_id"])
        pad_id = hf_config["text_config"].get("pad_token_id", 0)
        return int(pad_id) if hf_config["model_type"] == "chinese_clip" else None
    text = open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    if not text.hf_model_name:
        # The class token of CoCa attends to the words alone.
        return text.pad_id if text.embed_cls else None
    from transformers import AutoConfig

    pad_id = AutoConfig.from_pretrained(text.hf_model_name).pad_token_id
    return None if pad_id is None else int(pad_id)


def _is_self_attention(attention: nn.MultiheadAttention, parent: nn.Module) -> bool:
    is_block = isinstance(parent, open_clip.transformer.ResidualAttentionBlock)
    return is_block and attention.batch_first and attention.in_proj_bias is not None
