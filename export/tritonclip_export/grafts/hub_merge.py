"""AdapterHub's own LoRA and (IA)^3, which weights can hold: added to the model's when they are attached.

A linear layer becomes W + alpha / r * B @ A, or with (IA)^3 (composition_mode "scale") alpha * l * (W x + b): its
output is scaled, the bias too, as the library's forward does it and its own merge does not. From
`adapters.methods.lora`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.grafts.blocks import native_blocks
from tritonclip_export.grafts.graft import Graft
from tritonclip_export.grafts.hub_files import HubFolder, Place, check_layers

_KEY = r"(?P<part>self_attn\.[qkv]_proj|mlp\.fc[12])\.loras\.NAME\.(?P<tensor>.+)"
_MODES = ("add", "scale")
_REFUSED = {
    "use_gating": "its gate depends on the input, so no weights can hold it",
    "use_dora": "this library's DoRA also scales the bias, and its merge does not agree with its forward; export the "
    "model from the library's own reset_adapter and save_pretrained, or train with PEFT",
    "vera_d": "AdapterHub's VeRA is not read by this version; train with PEFT's VeraConfig and save_projection=True",
    "vera_b": "AdapterHub's VeRA is not read by this version; train with PEFT's VeraConfig and save_projection=True",
}


@dataclass(frozen=True)
class MergeGraft(Graft):
    """LoRA or (IA)^3 of AdapterHub; adds no operator to the graph."""

    folder: HubFolder

    def attach(self, model: Any) -> None:
        """See `Graft.attach`."""
        groups = self.folder.grouped(_KEY)
        check_layers(self.folder, groups, None, model)
        changes = [self._change(place, tensors, model) for place, tensors in groups.items()]
        with torch.no_grad():
            for weight, bias, (new_weight, new_bias) in changes:
                weight.copy_(new_weight)
                bias.copy_(new_bias)

    def settings(self) -> str:
        """See `Graft.settings`."""
        return json.dumps(dict(self.folder.config), sort_keys=True)

    def _change(
        self, place: Place, tensors: Mapping[str, torch.Tensor], model: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        weight, bias = _linear(native_blocks(model, place.tower)[place.layer], place.part)
        scales = self.folder.config.get("composition_mode", "add") == "scale"
        out, into = weight.shape
        rank = 1 if scales else int(self.folder.config["r"])
        wanted = {"lora_B": (out, rank)} if scales else {"lora_A": (rank, into), "lora_B": (out, rank)}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != wanted:
            raise AdapterError(
                f"{place.part} of layer {place.layer} of the {place.tower} tower needs {wanted}, and {self.path} has "
                f"{given}; give the checkpoint that the adapter was trained on"
            )
        b = tensors["lora_B"].float()
        if scales:
            factor = self._alpha() * b
            return weight, bias, (weight * factor, bias * factor[:, 0])
        return weight, bias, (weight + self._alpha() / rank * b @ tensors["lora_A"].float(), bias)

    def _alpha(self) -> float:
        # Before 1.1.0 the library ignored alpha; it sets alpha to r when it loads such a file (its PR 770).
        old = re.match(r"adapters\.(\d+)\.(\d+)", self.folder.version)
        ignored = old is not None and (int(old[1]), int(old[2])) < (1, 1)
        return float(self.folder.config["r" if ignored else "alpha"])


def read_merge(folder: HubFolder) -> MergeGraft:
    """The graft of AdapterHub's LoRA or (IA)^3.

    Raises:
        AdapterError: a setting that cannot be merged.
    """
    config = folder.config
    for name, reason in _REFUSED.items():
        if config.get(name) not in (None, False):
            raise AdapterError(f"{name} in {folder.files[0]} is {config[name]!r}, which cannot be merged: {reason}")
    mode = config.get("composition_mode", "add")
    if mode not in _MODES:
        raise AdapterError(f"composition_mode in {folder.files[0]} is {mode!r}; allowed: {', '.join(_MODES)}")
    numbers = [config.get("r"), config.get("alpha")]
    if not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
        raise AdapterError(
            f"r and alpha in {folder.files[0]} are {numbers[0]!r} and {numbers[1]!r}, numbers above 0 are allowed"
        )
    method = "AdapterHub LoRA" if mode == "add" else "AdapterHub (IA)^3"
    return MergeGraft(folder.path, method, folder.files, folder.tensors, (), folder)


def _linear(block: Any, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of one linear layer of Hugging Face's block, as views of open_clip's."""
    if part.startswith("mlp."):
        layer = _plain(block.mlp.c_fc if part == "mlp.fc1" else block.mlp.c_proj)
        return layer.weight, layer.bias
    attention = _plain(block.attn)
    fused = getattr(attention, "qkv", None)
    weight = attention.in_proj_weight if fused is None else fused.weight
    bias = attention.in_proj_bias if fused is None else fused.bias
    row = "qkv".index(part.removeprefix("self_attn.")[0])
    return weight.chunk(3)[row], bias.chunk(3)[row]


def _plain(module: Any) -> Any:
    """The module inside PEFT's wrapper, or itself."""
    return getattr(module, "base_layer", module)
