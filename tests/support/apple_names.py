"""MobileCLIP by the names of Apple's own files (https://github.com/apple/ml-mobileclip), from open_clip's."""

from __future__ import annotations

import re

from tritonclip_export.frameworks import torch

TEXT = {
    r"^text\.text_projection": "text_encoder.projection_layer",
    r"^text\.token_embedding": "text_encoder.embedding_layer",
    r"^text\.positional_embedding": "text_encoder.positional_embedding.pos_embed.pos_embed",
    r"^text\.ln_final": "text_encoder.final_layer_norm",
    r"^text\.transformer\.resblocks": "text_encoder.transformer",
    r"ln_1": "pre_norm_mha.0",
    r"attn\.in_proj_": "pre_norm_mha.1.qkv_proj.",
    r"attn\.out_proj": "pre_norm_mha.1.out_proj",
    r"ln_2": "pre_norm_ffn.0",
    r"mlp\.c_fc": "pre_norm_ffn.1",
    r"mlp\.c_proj": "pre_norm_ffn.4",
}
VIT = {
    r"patch_embed\.backbone": "patch_emb",
    r"(\d)\.conv": r"\1.block.conv",
    r"(\d)\.bn": r"\1.block.norm",
    r"^visual\.trunk\.norm": "visual.trunk.post_transformer_norm",
    r"blocks": "transformer",
    r"norm1": "pre_norm_mha.0",
    r"attn\.qkv": "pre_norm_mha.1.qkv_proj",
    r"attn\.proj": "pre_norm_mha.1.out_proj",
    r"norm2": "pre_norm_ffn.0",
    r"mlp\.fc1": "pre_norm_ffn.1",
    r"mlp\.fc2": "pre_norm_ffn.4",
    r"pos_embed$": "pos_embed.pos_embed.pos_embed",
    r"head\.weight": "classifier.proj",
}
# Stages are numbered with what stands between them.
FASTVIT = {
    r"stages\.0\.blocks": "network.0",
    r"stages\.1\.downsample": "network.1",
    r"stages\.1\.blocks": "network.2",
    r"stages\.2\.downsample": "network.3",
    r"stages\.2\.blocks": "network.4",
    r"stages\.3\.downsample": "network.5",
    r"stages\.3\.pos_emb\.pos_enc": "network.6.pe",
    r"stages\.3\.blocks": "network.7",
    r"stem": "patch_embed",
    r"conv_kxk": "rbr_conv",
    r"conv_scale": "rbr_scale",
    r"identity": "rbr_skip",
    r"final_conv": "conv_exp",
    r"large_conv": "lkb_origin",
    r"mlp": "convffn",
    r"se\.fc1": "se.reduce",
    r"se\.fc2": "se.expand",
    r"\.gamma$": "",
    r"head\.fc\.weight": "head.proj",
}
# In Apple's files a matrix that multiplies from the right, or a table of shape [1, (1,) length, width].
SHAPES = {
    r"(head|classifier)\.proj$": lambda tensor: tensor.T,
    r"text_encoder.*pos_embed$": lambda tensor: tensor[None, None],
    r"model\.pos_embed\..*pos_embed$": lambda tensor: tensor[None],
}


def by_apple(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renamed; the projection of the image tower has no bias there."""
    tower = FASTVIT if any("stages." in name for name in weights) else VIT
    named = {}
    for name, tensor in weights.items():
        if re.search(r"trunk\.head\.(fc\.)?bias$", name):
            continue
        renamed = _renamed(name, TEXT if name.startswith("text.") else tower if name.startswith("visual.") else {})
        renamed = renamed.replace("visual.trunk.", "image_encoder.model.")
        change = next((change for pattern, change in SHAPES.items() if re.search(pattern, renamed)), None)
        named[renamed] = change(tensor).contiguous() if change else tensor
    return named


def _renamed(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name
