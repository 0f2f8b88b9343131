"""Whose module names an adapter speaks: open_clip's or Hugging Face's, of any CLIP family."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tritonclip_export.errors import AdapterError

Namespace = Literal["open_clip", "hf"]

# An adapter of one tower alone may begin inside the tower: transformers 5 dropped `text_model.`.
# SigLIP's `head.` is left to the other names, as timm's towers have one too; `encoder.layer.` is Chinese-CLIP's BERT.
BARE_HF = re.compile(r"(encoder\.layers?|embeddings|pre_layrnorm|post_layernorm|final_layer_norm)\.")
BARE_VISUAL = re.compile(r"(conv1|ln_pre|ln_post|trunk)\.")

_SPEECH: dict[Namespace, tuple[re.Pattern[str], ...]] = {
    "hf": (re.compile(r"(text_model|vision_model|text_projection|visual_projection)\."), BARE_HF),
    "open_clip": (re.compile(r"(visual|transformer|text|token_embedding|ln_final)\."), BARE_VISUAL),
}


def recognize(keys: Iterable[str], base_model_class: str | None, path: Path) -> Namespace:
    """The library whose names `keys` are (PEFT's prefix taken off).

    Raises:
        AdapterError: no key belongs to a CLIP of either library, or both are spoken.
    """
    keys = list(keys)
    spoken: list[Namespace] = [
        name for name, patterns in _SPEECH.items() if any(p.match(key) for p in patterns for key in keys)
    ]
    if len(spoken) != 1:
        what = "names of both" if spoken else "no names of"
        raise AdapterError(
            f"{path} holds {what} open_clip's CLIP and Hugging Face's models of its family (CLIPModel, SiglipModel, "
            f"ChineseCLIPModel); first key: {keys[0] if keys else 'none'}, trained class: "
            f"{base_model_class or 'not recorded'}. Adapters of other models cannot be merged."
        )
    return spoken[0]
