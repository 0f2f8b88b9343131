"""Whether weights are those of a model, told by their names, shapes and values before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

SHOWN = 3

# A name that only weights of that kind have; the first that is found decides.
_KINDS = {
    r"\.lora_[AB](\.|$)": "an adapter (give it to --adapter)",
    r"bert\.embeddings\.": "cn_clip's Chinese-CLIP",
    r"text_model\.embeddings\.word_embeddings\.": "Hugging Face's ChineseCLIPModel",
    r"vision_model\.head\.probe$": "Hugging Face's SiglipModel",
    r"(vision|text)_model\.": "Hugging Face's CLIPModel",
    r"^image_encoder\.model\.": "Apple's own MobileCLIP",
    r"^visual\.blocks\.": "EVA-CLIP's own repository",
    r"visual\.trunk\.": "open_clip with an image tower of timm",
    r"visual\.layer1\.": "open_clip with a ResNet",
    r"visual\.transformer\.resblocks\.": "open_clip with a plain ViT",
    r"(^|text\.)transformer\.resblocks\.": "open_clip's text tower",
}


def require_fit(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], model: str) -> None:
    """Refuse weights that are not exactly those of a model.

    Args:
        wanted: the model's own, of which names, shapes and kinds of numbers are looked at.
        given: the weights.
        model: whose weights are wanted, for the message.

    Raises:
        CheckpointError: counts the missing, unknown and misshapen tensors, names the first of each, and says whose
            weights they look like.
    """
    floats = {name for name, tensor in given.items() if tensor.is_floating_point() and tensor.itemsize > 1}
    shared = [name for name in wanted if name in given]
    shapes = {name: (tuple(given[name].shape), tuple(wanted[name].shape)) for name in shared}
    problems = [
        _first([name for name in wanted if name not in given], "missing"),
        _first([name for name in given if name not in wanted], "unknown"),
        _first([f"{name} {own}, not {due}" for name, (own, due) in shapes.items() if own != due], "of another shape"),
        _first(
            [name for name in shared if wanted[name].is_floating_point() and name not in floats],
            "in whole numbers or 8 bits, as quantized weights are",
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"the weights do not fit {model}: {'; '.join(filter(None, problems))}. They look like those of "
            f"{_kind(given)}; give the config or the architecture that they were trained with"
        )


def require_finite(given: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: counts the tensors and names the first.
    """
    real = {name: tensor for name, tensor in given.items() if not tensor.is_meta}
    bad = _first([name for name, tensor in real.items() if not torch.isfinite(tensor).all()], "hold NaN or infinity")
    if bad:
        raise CheckpointError(f"the weights cannot be used: {bad}; export a checkpoint that trained well")


def _first(found: Sequence[str], what: str) -> str:
    more = ", …" if len(found) > SHOWN else ""
    return f"{len(found)} {what} ({', '.join(found[:SHOWN])}{more})" if found else ""


def _kind(given: Mapping[str, torch.Tensor]) -> str:
    return next(
        (kind for mark, kind in _KINDS.items() if any(re.search(mark, name) for name in given)), "no CLIP known here"
    )
