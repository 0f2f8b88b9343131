"""A SigLIP 2 with NaFlex, as `save_pretrained` leaves the model and its processor; small, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from family_checkpoints import HF_SIZES, perturbed
from local_tokenizers import CORPUS, QUIET
from tritonclip_export.frameworks import torch

# As Google's files say it: texts end in <eos>, are padded on the right, and no mask is handed to the model.
TOKENIZER = {"add_eos_token": True, "padding_side": "right", "model_input_names": ["input_ids"]}


def gemma(folder: Path, size: int = 800, **settings: Any) -> int:
    """Gemma's BPE with bytes to fall back on, in SigLIP 2's class, which lowers capitals; returns its size."""
    from transformers import Siglip2Tokenizer

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, **QUIET)
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    made = Siglip2Tokenizer(vocab=learnt["vocab"], merges=merges, **{**TOKENIZER, **settings})
    made.save_pretrained(folder)
    return len(made)


def hf_siglip2(folder: Path, max_num_patches: int = 256, num_patches: int = 256, **settings: Any) -> None:
    """A `Siglip2Model` directory; `settings` are the tokenizer's."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = gemma(folder, **settings)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = {**HF_SIZES, "vocab_size": vocabulary, "max_position_embeddings": 64, "projection_size": 64, **ids}
    vision = {**HF_SIZES, "patch_size": 16, "num_patches": num_patches}
    torch.manual_seed(0)
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    weights = perturbed(model)
    model.save_pretrained(folder, state_dict=weights)
    Siglip2ImageProcessor(max_num_patches=max_num_patches).save_pretrained(folder)
