"""The truth that an export is measured against: float32 PyTorch, adapters applied unmerged by PEFT itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tritonclip_export.adapters.graph import GraphAdapter
from tritonclip_export.adapters.lora.task_vector import TaskVector
from tritonclip_export.adapters.lora.unmerged import AnyAdapter, ReferenceUnavailable, attach_unmerged
from tritonclip_export.adapters.lora.weights import base_weights
from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import CHUNK

__all__ = ["Reference", "ReferenceUnavailable", "require_complete", "unmerged_reference"]

Features = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reference:
    """A CLIP in float32 with its adapters beside its weights.

    Attributes:
        description: which library runs it, for the parity report.
        image_features: float32 [N, 3, H, W], normalized by mean and std, to float32 [N, D].
        text_features: int64 [N, context_length] to float32 [N, D].
    """

    description: str
    image_features: Features
    text_features: Features

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, H, W], normalized by mean and std, to L2-normalized float32 [N, D]."""
        return _embed(self.image_features, pixel_values.float())

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int32 or int64 [N, context_length] to L2-normalized float32 [N, D]."""
        return _embed(self.text_features, input_ids.long())


def unmerged_reference(
    model_cfg: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    adapters: Sequence[tuple[AnyAdapter, float]],
    graph_adapters: Sequence[GraphAdapter] = (),
) -> Reference:
    """The model with PEFT's own forward for every adapter; without adapters the model in its own library.

    Args:
        model_cfg: the checkpoint's.
        state_dict: its weights, any floating dtype.
        adapters: adapters and their factors, as for `merge_adapters`.

    Raises:
        ReferenceUnavailable: PEFT cannot run this combination unmerged.
        CheckpointError: the weights do not fit the config.
    """
    namespaces = {adapter.namespace for adapter, _ in adapters if not isinstance(adapter, TaskVector)}
    if len(namespaces) > 1:
        raise ReferenceUnavailable(
            "The adapters speak names of open_clip and of Hugging Face, and no one model runs both unmerged. "
            "The merge itself is possible."
        )
    translated = namespaces == {"hf"} and "hf_config" not in model_cfg
    if translated and graph_adapters:
        raise ReferenceUnavailable(
            "adapters that change the graph attach to open_clip's model, and these adapters to Hugging Face's"
        )
    if translated:
        return _translated_reference(model_cfg, state_dict, adapters)
    return _own_reference(model_cfg, state_dict, adapters, graph_adapters)


def require_complete(
    model_cfg: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], adapters: Sequence[AnyAdapter]
) -> None:
    """Have PEFT load every adapter alone, only for it to say which tensors are missing; takes no memory for weights.

    Raises:
        AdapterError: an adapter lacks tensors.
    """
    hollow = {name: torch.empty_like(tensor, device="meta") for name, tensor in state_dict.items()}
    for adapter in adapters:
        # RuntimeError: methods that compute with the base weights, such as PiSSA, cannot be loaded so.
        with suppress(ReferenceUnavailable, RuntimeError):
            unmerged_reference(model_cfg, hollow, [(adapter, 1.0)])


def _own_reference(
    model_cfg: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    adapters: Sequence[tuple[AnyAdapter, float]],
    graph_adapters: Sequence[GraphAdapter],
) -> Reference:
    model = new_model(model_cfg, empty=True)
    load_strictly(model, _own_weights(state_dict) if adapters else state_dict, "the model config")
    library = "transformers" if "hf_config" in model_cfg else "open_clip"
    attach_unmerged(model, adapters, base_weights("open_clip", state_dict))
    how = f"PEFT on {library}, {len(adapters)} adapters unmerged" if adapters else library
    # After PEFT, which finds modules by their kind and name.
    for graph_adapter in graph_adapters:
        graph_adapter.attach(model)
        how += f", {graph_adapter.method}"
    return Reference(f"float32 PyTorch, {how}", model.encode_image, model.encode_text)


def _translated_reference(
    model_cfg: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    adapters: Sequence[tuple[AnyAdapter, float]],
) -> Reference:
    with warnings.catch_warnings():
        # transformers warns of its own deprecations.
        warnings.simplefilter("ignore")
        model: Any = build_hf_clip(model_cfg, _own_weights(state_dict))
    attach_unmerged(model, adapters, base_weights("hf", state_dict))

    def image_features(pixel_values: torch.Tensor) -> torch.Tensor:
        pooled = model.vision_model(pixel_values=pixel_values).pooler_output
        features: torch.Tensor = model.visual_projection(pooled)
        return features

    def text_features(input_ids: torch.Tensor) -> torch.Tensor:
        pooled = model.text_model(input_ids=input_ids).pooler_output
        features: torch.Tensor = model.text_projection(pooled)
        return features

    how = f"PEFT on transformers, {len(adapters)} adapters unmerged"
    return Reference(f"float32 PyTorch, {how}", image_features, text_features)


def _own_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy for PEFT, which writes into weights when it loads an adapter, and into an attention's at every forward."""
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def _embed(features: Features, inputs: torch.Tensor) -> torch.Tensor:
    # Not inference_mode: PEFT writes weights during the forward, and those must stay ordinary tensors.
    with torch.no_grad(), warnings.catch_warnings():
        # PEFT warns when the attention's own merge adds a second adapter, as it was asked to.
        warnings.simplefilter("ignore")
        embedded = torch.cat([features(chunk).float() for chunk in inputs.split(CHUNK)])
        return torch.nn.functional.normalize(embedded, dim=-1)
