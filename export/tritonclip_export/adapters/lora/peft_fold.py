"""Folds an adapter by PEFT's own `merge_and_unload`, on a model that has the names the adapter speaks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritonclip_export.adapters.lora.peft.load import ADAPTER_NAME, load_with_peft, raised_by_peft
from tritonclip_export.adapters.lora.peft.method import MethodAdapter
from tritonclip_export.adapters.lora.report import Skipped
from tritonclip_export.adapters.lora.unmerged import find_host
from tritonclip_export.adapters.lora.weights import base_weights
from tritonclip_export.checkpoints.key_mapping import to_hf
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import open_clip, torch

if TYPE_CHECKING:
    from peft import PeftModel

Build = Callable[[Mapping[str, torch.Tensor]], torch.nn.Module]

_HF_TOWERS = ("text_model.", "vision_model.")
# Modules that read the weights of the layers below them and never call them.
_NEVER_CALLING = (torch.nn.MultiheadAttention, open_clip.modified_resnet.AttentionPool2d)


@dataclass(frozen=True)
class FoldedByPeft:
    """What an adapter changes.

    Attributes:
        deltas: merged - base, float32, by the names of the state dict; tensors that stay are left out.
        modules: how many layers PEFT merged.
        skipped: adapted layers that never run.
    """

    deltas: dict[str, torch.Tensor]
    modules: int
    skipped: tuple[Skipped, ...]


def fold_by_peft(adapter: MethodAdapter, state_dict: Mapping[str, torch.Tensor], build: Build | None) -> FoldedByPeft:
    """merged - base of every tensor that `adapter` changes.

    Args:
        state_dict: the checkpoint's weights by its library's names.
        build: makes the checkpoint's model with such weights; not needed for Hugging Face's names on an open_clip CLIP.

    Raises:
        AdapterError: the adapter does not fit the model, or PEFT cannot fold it.
    """
    translated = adapter.namespace == "hf" and not any(name.startswith(_HF_TOWERS) for name in state_dict)
    if build is None and not translated:
        raise AdapterError(f"{adapter.path} is folded by PEFT, which needs the model; give merge_adapters its `build`.")
    model = _hf_modules(state_dict) if translated or build is None else build(_copy(state_dict))
    base = base_weights(adapter.namespace, state_dict)
    host = find_host(model, adapter, base)
    # PEFT draws a start for what it is about to load.
    with torch.random.fork_rng(devices=[]):
        modules, skipped = _merge(host.module, adapter)
    host.put_back(model)
    changed = {}
    for name, tensor in model.state_dict().items():
        weight = base.get(name) if translated else state_dict[name].float()
        assert weight is not None, name
        if not torch.equal(tensor, weight):
            # In place, to hold no third copy; the model was made for this and ends here.
            changed[name] = tensor.sub_(weight)
    return FoldedByPeft(base.native(changed) if translated else changed, modules, skipped)


def _merge(module: torch.nn.Module, adapter: MethodAdapter) -> tuple[int, tuple[Skipped, ...]]:
    """Merge into the weights of `module`; how many layers, and which were left out."""
    try:
        peft_model = load_with_peft(module, adapter)
        _require_all_used(peft_model, adapter)
        skipped = tuple(_take_out_dead(module))
        count = sum(1 for _ in _adapted(module))
        peft_model.merge_and_unload()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if raised_by_peft(error) or "size mismatch" in str(error):
            raise AdapterError(_misfit(adapter, str(error))) from error
        raise
    return count, skipped


def _adapted(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer))


def _take_out_dead(module: torch.nn.Module) -> Iterator[Skipped]:
    """Unwrap the adapted layers that never run, so that they are not merged; what their start did to them stays."""
    for name, layer in list(_adapted(module)):
        parent_name, _, leaf = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        resized = leaf == "position_embedding" and hasattr(parent, "resize_positional_embeddings")
        if isinstance(parent, _NEVER_CALLING) or resized or (leaf == "qkv" and _adds_own_bias(parent)):
            setattr(parent, leaf, layer.get_base_layer())
            yield Skipped(name, f"{type(parent).__name__} reads the layer's weight and never calls the layer")


def _adds_own_bias(attention: torch.nn.Module) -> bool:
    """timm's EVA with a fused projection keeps its biases apart and gives them to F.linear with the layer's weight."""
    return getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False)


def _require_all_used(peft_model: PeftModel, adapter: MethodAdapter) -> None:
    """PEFT passes over tensors that it finds no place for."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        # PEFT warns where AdaLoRA left a layer without any rank.
        warnings.simplefilter("ignore")
        placed = get_peft_model_state_dict(peft_model, adapter_name=ADAPTER_NAME)
    homeless = [key for key in adapter.tensors if f"base_model.model.{key}" not in placed]
    if homeless:
        raise AdapterError(_misfit(adapter, f"{len(homeless)} tensors have no place (first: {homeless[0]})"))


def _misfit(adapter: MethodAdapter, reason: str) -> str:
    return (
        f"PEFT cannot fold {adapter.path} ({adapter.settings.method}) into this model: "
        f"{' '.join(reason.split())[:300]}. Give the checkpoint that it was trained on (base_model_name_or_path: "
        f"{adapter.settings.base_model_name or 'not recorded'})."
    )


def _hf_modules(state_dict: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A `CLIPModel` with open_clip's weights, to be folded and not run: the shapes tell no heads and no activation."""
    from transformers import CLIPConfig, CLIPModel

    weights = _copy(to_hf(state_dict))
    vision, text = _tower(weights, "vision_model"), _tower(weights, "text_model")
    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    positions = weights["vision_model.embeddings.position_embedding.weight"]
    vocabulary = weights["text_model.embeddings.token_embedding.weight"]
    vision["patch_size"] = patches.shape[-1]
    vision["image_size"] = math.isqrt(len(positions) - 1) * patches.shape[-1]
    text["vocab_size"] = len(vocabulary)
    text["max_position_embeddings"] = len(weights["text_model.embeddings.position_embedding.weight"])
    text.update(bos_token_id=None, eos_token_id=2, pad_token_id=None)
    embed_dim = len(weights["text_projection.weight"])
    with torch.device("meta"):
        model: torch.nn.Module = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=embed_dim))
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _copy(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PEFT merges into the tensors themselves, which a model may share with what it was made of."""
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in state_dict.items()}


def _tower(weights: Mapping[str, torch.Tensor], tower: str) -> dict[str, Any]:
    intermediate, width = weights[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in weights if name.startswith(f"{tower}.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 1,
    }
