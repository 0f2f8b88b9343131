"""Small random CLIPs and adapters that PEFT makes, trains (by noise) and saves itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.frameworks import torch

torch.set_num_threads(1)

VOCABULARY = 1000
CONTEXT = 12
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2},
}
TRAINED_TOKENS = [3, 5, 11]

Embeddings = tuple[torch.Tensor, torch.Tensor]


def random_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of MODEL_CFG; norms and biases are perturbed too, so that no tensor is all ones or zeros."""
    torch.manual_seed(seed)
    weights = new_model(MODEL_CFG).state_dict()
    return {
        name: tensor + 0.1 * torch.randn_like(tensor) if tensor.ndim == 1 else tensor.clone()
        for name, tensor in weights.items()
    }


def images(count: int = 5) -> torch.Tensor:
    """float32 [count, 3, 16, 16]."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def texts(count: int = 5) -> torch.Tensor:
    """int64 [count, CONTEXT]: start, words (among them TRAINED_TOKENS), end of text at differing places, zeros."""
    ids = torch.randint(1, VOCABULARY - 2, (count, CONTEXT), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = VOCABULARY - 2
    ids[:, 1] = torch.tensor([TRAINED_TOKENS[row % 3] for row in range(count)])
    for row in range(count):
        ids[row, 4 + row :] = 0
        ids[row, 4 + row] = VOCABULARY - 1
    return ids


def open_clip_embeddings(state_dict: dict[str, torch.Tensor]) -> Embeddings:
    """L2-normalized image and text embeddings of a plain open_clip model with these weights."""
    model = new_model(MODEL_CFG)
    load_strictly(model, state_dict, "test")
    return _normalized(model.encode_image, model.encode_text)


def hf_embeddings(model: Any) -> Embeddings:
    """L2-normalized image and text embeddings of a `CLIPModel`, wrapped by PEFT or not."""
    return _normalized(
        lambda pixels: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output),
        lambda ids: model.text_projection(model.text_model(input_ids=ids).pooler_output),
    )


def largest_difference(one: Embeddings, other: Embeddings) -> float:
    """The largest difference of any value in either tower."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Trained:
    """An adapter that PEFT saved, and what PEFT's forward gives with it."""

    path: Path
    embeddings: Embeddings


def train_adapter(
    path: Path,
    namespace: str,
    state_dict: dict[str, torch.Tensor],
    *,
    part: str = "",
    seed: int = 7,
    noise: float = 0.25,
    safe: bool = True,
    **config: Any,
) -> Trained:
    """Let PEFT adapt a CLIP (or the submodule `part` of it), disturb all that is trainable, save it.

    The embeddings are those of the model that was trained, wrapped and unmerged.
    """
    base = plain_model(namespace, state_dict)
    model = peft_wrap(base.get_submodule(part), **config)
    disturb(model, seed, noise)
    with quiet():
        model.save_pretrained(str(path), safe_serialization=safe)
    embeddings = hf_embeddings(base) if namespace == "hf" else _normalized(base.encode_image, base.encode_text)
    return Trained(path, embeddings)


def disturb(model: Any, seed: int = 7, noise: float = 0.25) -> None:
    """What stands for training: all that is trainable moves, and the model is in eval mode then."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # PEFT trains in_proj_bias under bias="all" but does not save it.
            if parameter.requires_grad and not name.endswith("in_proj_bias"):
                parameter.add_(noise * torch.randn_like(parameter))
    model.eval()


def set_config(path: Path, **settings: Any) -> None:
    """Change settings of the adapter_config.json in the directory `path`."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def plain_model(namespace: str, state_dict: dict[str, torch.Tensor]) -> Any:
    """The float32 model of that library with these weights (given under open_clip's names)."""
    # Training writes into the weights, which a model shares with what it was made of.
    own = {name: tensor.clone() for name, tensor in state_dict.items()}
    if namespace == "hf":
        with quiet():
            return build_hf_clip(MODEL_CFG, own)
    model = new_model(MODEL_CFG)
    load_strictly(model, own, "test")
    return model


def peft_wrap(model: Any, peft_config: Any = None, **config: Any) -> Any:
    """PEFT's wrapper with `peft_config`, else with a LoraConfig; r 4 and lora_alpha 8 unless given."""
    from peft import LoraConfig, get_peft_model

    with quiet():
        return get_peft_model(model, peft_config or LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))


class quiet(warnings.catch_warnings):  # noqa: N801
    """The libraries' own deprecation warnings are not what these tests are about."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _normalized(
    encode_image: Callable[[torch.Tensor], torch.Tensor], encode_text: Callable[[torch.Tensor], torch.Tensor]
) -> Embeddings:
    with torch.no_grad():
        features = encode_image(images()), encode_text(texts())
    image, text = (torch.nn.functional.normalize(feature, dim=-1) for feature in features)
    return image, text
