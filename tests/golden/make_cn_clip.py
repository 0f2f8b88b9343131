"""Writes tests/golden/cn_clip.safetensors: a tiny model of cn_clip's own classes, inputs, and what it makes of them.

Importing the model alone needs torch and six of what cn-clip wants installed:

    pip install --no-deps cn-clip==1.5.1 six && python tests/golden/make_cn_clip.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from cn_clip.clip import tokenize
from cn_clip.clip.model import CLIP
from safetensors.torch import save_file

TEXTS = ["杰尼龟", "一只猫坐在沙发上 a cat", "很长的文字" * 30]
SIZES = {"embed_dim": 16, "image_resolution": 32, "vision_layers": 2, "vision_width": 32, "vision_patch_size": 8}
VOCABULARY = 120
TEXT = {
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 32,
    "text_initializer_range": 0.2,
    "text_intermediate_size": 64,
    "text_max_position_embeddings": 64,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}


def main() -> None:
    """Every value comes from cn_clip; its ids are folded into the tiny vocabulary, 0 stays the padding."""
    torch.manual_seed(0)
    model = CLIP(**SIZES, **TEXT, vocab_size=VOCABULARY, vision_head_width=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    real_ids = tokenize(TEXTS)
    ids = torch.where(real_ids > 0, real_ids % (VOCABULARY - 1) + 1, 0)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        images, texts = model.encode_image(pixels), model.encode_text(ids)
    weights = {f"module.{name}": tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    inputs = {"pixels": pixels, "ids": ids, "real_ids": real_ids, "images": images, "texts": texts}
    save_file({**weights, **inputs}, Path(__file__).with_name("cn_clip.safetensors"))


if __name__ == "__main__":
    main()
