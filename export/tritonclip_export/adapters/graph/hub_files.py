"""The folders that AdapterHub's `adapters` library saves: settings, weights and where in CLIP they belong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tritonclip_export.adapters.graph.blocks import Tower, layer_count, native_blocks
from tritonclip_export.adapters.graph.files import read_json, read_tensors
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

ADAPTER_CONFIG = "adapter_config.json"
FUSION_CONFIG = "adapter_fusion_config.json"
_WEIGHTS = {
    ADAPTER_CONFIG: ("pytorch_adapter.bin", "adapter.safetensors"),
    FUSION_CONFIG: ("pytorch_model_adapter_fusion.bin", "model_adapter_fusion.safetensors"),
}
# Before its files carried a version, the library meant the tanh form by "gelu" (adapters.utils.ACTIVATION_RENAME).
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_ONE_TOWER: Mapping[str, Tower] = {"CLIPText": "text", "CLIPVision": "vision", "CLIPForImage": "vision"}
# A model with heads puts its CLIP's name before the tower's.
_LAYER = r"(?:\w+\.)?(?P<tower>text|vision)_model\.encoder\.layers\.(?P<layer>\d+)\."


class Place(NamedTuple):
    """Where in CLIP a group of tensors belongs: `part` is a site of the block or one of its modules."""

    tower: Tower
    layer: int
    part: str


@dataclass(frozen=True)
class HubFolder:
    """One folder as it was saved.

    Attributes:
        name: the adapter's name, part of its tensors' names.
        model_class: the class of transformers that it was trained on; "" if not recorded.
        version: the library's, such as "adapters.1.3.0"; "" in old files.
        config: the method's settings.
        others: the entries of the settings file beside `config`.
    """

    path: Path
    name: str
    model_class: str
    version: str
    config: Mapping[str, Any]
    others: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    files: tuple[Path, ...]

    def grouped(self, pattern: str) -> dict[Place, dict[str, torch.Tensor]]:
        """The tensors by place; `pattern`, after the layer's name, has the groups `part` and `tensor`.

        Raises:
            AdapterError: a tensor does not match.
        """
        grammar = re.compile(_LAYER + pattern.replace("NAME", re.escape(self.name)) + "$")
        groups: dict[Place, dict[str, torch.Tensor]] = {}
        for key, tensor in self.tensors.items():
            match = grammar.match(key)
            if match is None:
                raise AdapterError(
                    f"{key} in {self.path} belongs to no layer of CLIP's towers that its {self.name!r} could adapt; "
                    "train one method at a time, in the layers of text_model and vision_model"
                )
            tower: Tower = "text" if match["tower"] == "text" else "vision"
            place = Place(tower, int(match["layer"]), match["part"])
            groups.setdefault(place, {})[match["tensor"]] = tensor
        return groups


def read_hub_folder(folder: Path, config_file: str) -> HubFolder:
    """Read an adapter (`ADAPTER_CONFIG`) or a fusion (`FUSION_CONFIG`).

    Raises:
        AdapterError: a file is missing or broken.
    """
    settings = folder / config_file
    raw = read_json(settings)
    config, name = raw.get("config"), raw.get("name")
    if not isinstance(config, dict) or not isinstance(name, str):
        raise AdapterError(f"{settings} has no settings under 'config' and 'name'; save the adapter with adapters 1.x")
    if "version" not in raw and config.get("non_linearity") in _OLD_ACTIVATIONS:
        config = {**config, "non_linearity": _OLD_ACTIVATIONS[config["non_linearity"]]}
    weights = next((folder / name for name in _WEIGHTS[config_file] if (folder / name).is_file()), None)
    if weights is None:
        raise AdapterError(f"{folder} has none of {', '.join(_WEIGHTS[config_file])}; save the adapter again")
    return HubFolder(
        path=folder,
        name=name,
        model_class=str(raw.get("model_class") or ""),
        version=str(raw.get("version") or ""),
        config=config,
        others={key: value for key, value in raw.items() if key != "config"},
        tensors=read_tensors(weights),
        files=(settings, weights),
    )


def check_layers(folder: HubFolder, places: Mapping[Place, Any], parts: set[str] | None, model: Any) -> None:
    """Hold the layers of a file against the model's and against the settings.

    Args:
        parts: what every layer that is not left out must hold; None: what any of them holds.

    Raises:
        AdapterError: a tower is no native transformer; or names the first layer that the model or the file lacks.
    """
    for tower in sorted({place.tower for place in places}):
        native_blocks(model, tower)
    counts = {tower: layer_count(model, tower) for tower in ("text", "vision")}
    for place in places:
        if place.layer >= counts[place.tower]:
            raise AdapterError(
                f"{folder.path} adapts layer {place.layer} of the {place.tower} tower, and the model's has "
                f"{counts[place.tower]} layers, counted from 0; give the checkpoint that the adapter was trained on"
            )
    parts = parts or {place.part for place in places}
    missing = [
        Place(tower, layer, part)
        for tower, layer in _expected_layers(folder, places, counts)
        for part in sorted(parts)
        if Place(tower, layer, part) not in places
    ]
    if missing:
        raise AdapterError(
            f"{folder.path} has nothing for layer {missing[0].layer} of the {missing[0].tower} tower "
            f"({missing[0].part}; {len(missing)} missing in all), which its settings do not leave out; it is of a "
            f"model with fewer layers, or incomplete. Give the checkpoint that it was trained on"
        )


def _expected_layers(
    folder: HubFolder, places: Mapping[Place, Any], counts: Mapping[str, int]
) -> list[tuple[Tower, int]]:
    """The layers that are not left out; the library counts those of the text tower first, then the image tower's."""
    left_out = set(folder.config.get("leave_out") or ())
    single = next((tower for prefix, tower in _ONE_TOWER.items() if folder.model_class.startswith(prefix)), None)
    if single is None and not folder.model_class:
        named = {place.tower for place in places}
        single = named.pop() if len(named) == 1 else None
    towers: tuple[Tower, ...] = (single,) if single else ("text", "vision")
    numbered = [(tower, layer) for tower in towers for layer in range(counts[tower])]
    return [place for number, place in enumerate(numbered) if number not in left_out]
