"""AdapterHub's own LoRA and (IA)^3, which weights can hold: added to the model's when they are attached.

A linear layer becomes W + alpha / r * B @ A, or with (IA)^3 (composition_mode "scale") alpha * l * (W x + b): its
output is scaled, the bias too, as the library's forward does it and its own merge does not. From
`adapters.methods.lora`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from tritonclip_export.adapters.graph.blocks import native_blocks
from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter
from tritonclip_export.adapters.graph.hub_files import HubFolder, Place, check_layers
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

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
class MergedAdapter(GraphAdapter):
    """LoRA or (IA)^3 of AdapterHub; adds no operator to the graph."""

    folder: HubFolder

    def attach(self, model: Any) -> None:
        """See `GraphAdapter.attach`."""
        groups = self.folder.grouped(_KEY)
        check_layers(self.folder, groups, None, model)
        layers = {place: _layer(native_blocks(model, place.tower)[place.layer], place.part) for place in groups}
        for place, tensors in groups.items():
            self._check(place, tensors, layers[place].shape())
        for place, tensors in groups.items():
            layers[place].change(partial(self._merge, tensors=tensors))

    def settings(self) -> str:
        """See `GraphAdapter.settings`."""
        return json.dumps(dict(self.folder.config), sort_keys=True)

    def _scales(self) -> bool:
        return bool(self.folder.config.get("composition_mode", "add") == "scale")

    def _check(self, place: Place, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        out, into = shape
        rank = 1 if self._scales() else int(self.folder.config["r"])
        wanted = {"lora_B": (out, rank)} if self._scales() else {"lora_A": (rank, into), "lora_B": (out, rank)}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != wanted:
            raise AdapterError(
                f"{place.part} of layer {place.layer} of the {place.tower} tower needs {wanted}, and {self.path} has "
                f"{given}; give the checkpoint that the adapter was trained on"
            )

    def _merge(self, weight: torch.Tensor, bias: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        """Change the weight [out, in] and the bias [out] of one layer in place."""
        b = tensors["lora_B"].float()
        if self._scales():
            weight.mul_(self._alpha() * b)
            bias.mul_(self._alpha() * b[:, 0])
        else:
            weight.add_(b @ tensors["lora_A"].float(), alpha=self._alpha() / self.folder.config["r"])

    def _alpha(self) -> float:
        # Before 1.1.0 the library ignored alpha; it sets alpha to r when it loads such a file (its PR 770).
        old = re.match(r"adapters\.(\d+)\.(\d+)", self.folder.version)
        ignored = old is not None and (int(old[1]), int(old[2])) < (1, 1)
        return float(self.folder.config["r" if ignored else "alpha"])


def read_merge(folder: HubFolder) -> MergedAdapter:
    """Read AdapterHub's LoRA or (IA)^3.

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
            f"r and alpha in {folder.files[0]} are {numbers[0]!r} and {numbers[1]!r}; allowed: numbers above 0"
        )
    method = "AdapterHub LoRA" if mode == "add" else "AdapterHub (IA)^3"
    return MergedAdapter(folder.path, method, folder.files, folder.tensors, (), folder)


class _Layer(NamedTuple):
    """A linear layer: a module, its two parameters, and the third of their rows that it is; None for all of them."""

    owner: Any
    weight: str
    bias: str
    third: int | None

    def shape(self) -> tuple[int, int]:
        """[out, in] of the layer."""
        out, into = getattr(self.owner, self.weight).shape
        return (out if self.third is None else out // 3), into

    def change(self, merge: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        """Let `merge` change copies of weight and bias: the originals may be the checkpoint's own tensors."""
        copies = [getattr(self.owner, name).detach().clone() for name in (self.weight, self.bias)]
        merge(*(copy if self.third is None else copy.chunk(3)[self.third] for copy in copies))
        for name, copy in zip((self.weight, self.bias), copies, strict=True):
            setattr(self.owner, name, nn.Parameter(copy))


def _layer(block: Any, part: str) -> _Layer:
    """The layer of open_clip's block that has Hugging Face's name `part`."""
    if part.startswith("mlp."):
        return _Layer(_plain(block.mlp.c_fc if part == "mlp.fc1" else block.mlp.c_proj), "weight", "bias", None)
    attention = _plain(block.attn)
    third = "qkv".index(part.removeprefix("self_attn.")[0])
    if hasattr(attention, "qkv"):
        return _Layer(attention.qkv, "weight", "bias", third)
    return _Layer(attention, "in_proj_weight", "in_proj_bias", third)


def _plain(module: Any) -> Any:
    """The module inside PEFT's wrapper, or itself."""
    return getattr(module, "base_layer", module)
