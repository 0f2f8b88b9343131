"""AdapterHub's bottleneck adapters and fusions, from the saved folder into the blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from tritonclip_export.adapters.graph.blocks import Site, adapt, free_blocks, width_of
from tritonclip_export.adapters.graph.bottleneck import (
    ACTIVATIONS,
    Bottleneck,
    BottleneckSettings,
    Fusion,
    FusionSettings,
    FusionWeights,
)
from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter, load_exactly
from tritonclip_export.adapters.graph.hub_files import (
    ADAPTER_CONFIG,
    FUSION_CONFIG,
    HubFolder,
    Place,
    check_layers,
    read_hub_folder,
)
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_ADAPTER_KEY = r"(?P<part>attention|output)_adapters\.adapters\.NAME\.(?P<tensor>.+)"
_FUSION_KEY = r"(?P<part>attention|output)_adapters\.adapter_fusion_layer\.NAME\.(?P<tensor>.+)"
_SITES = {"mh_adapter": "attention", "output_adapter": "output"}
_SCALINGS = ("learned", "channel")
_REFUSED = {
    "phm_layer": "Compacter's hypercomplex layers are not read by this version; train with phm_layer=False",
    "use_gating": "the gate is a mean over all tokens, padding too, so an embedding would depend on the padding",
    "inv_adapter": "invertible adapters change the token embeddings and are not read by this version",
    "cross_adapter": "adapters on cross-attention need both inputs at once, and a tower sees only its own",
}
_TRAINING_ONLY = frozenset(
    {
        *("architecture", "reduction_factor", "leave_out", "dropout", "stochastic_depth"),
        *("init_weights", "init_weights_seed", "inv_adapter_reduction_factor"),
        *("phm_dim", "factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init"),
        *("phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "phm_rank", "phm_bias"),
    }
)

Sites = dict[Place, torch.nn.Module]


@dataclass(frozen=True)
class BottleneckAdapter(GraphAdapter):
    """One AdapterHub bottleneck adapter, in the layers of one tower or of both."""

    folder: HubFolder

    def attach(self, model: Any) -> None:
        """See `GraphAdapter.attach`."""
        _attach(model, dict(build_adapters(self.folder, model)))

    def settings(self) -> str:
        """See `GraphAdapter.settings`."""
        return json.dumps(dict(self.folder.config), sort_keys=True)


@dataclass(frozen=True)
class FusionAdapter(GraphAdapter):
    """An AdapterFusion over several bottleneck adapters."""

    folder: HubFolder
    adapters: tuple[HubFolder, ...]

    def attach(self, model: Any) -> None:
        """See `GraphAdapter.attach`."""
        settings = FusionSettings(**_known(FusionSettings, self.folder.config))
        sets = [build_adapters(adapter, model) for adapter in self.adapters]
        groups = self.folder.grouped(_FUSION_KEY)
        for adapters in sets:
            if set(adapters) != set(groups):
                odd = sorted(set(adapters) ^ set(groups))[0]
                raise AdapterError(
                    f"{self.path} does not fuse the same places as its adapters adapt (first: {odd.part} of layer "
                    f"{odd.layer}, {odd.tower} tower); AdapterFusion needs every adapter wherever it fuses"
                )
        sites: Sites = {}
        for place, tensors in groups.items():
            fused = [adapters[place] for adapters in sets]
            weights = FusionWeights(fused[0].adapter_up.out_features, settings)
            load_exactly(weights, tensors, _where(self.folder, place))
            sites[place] = Fusion(fused, weights, settings).eval()
        _attach(model, sites)

    def settings(self) -> str:
        """See `GraphAdapter.settings`."""
        configs = [dict(folder.config) for folder in (self.folder, *self.adapters)]
        return json.dumps(configs, sort_keys=True)


def read_bottleneck(folder: HubFolder) -> BottleneckAdapter:
    """Read a bottleneck adapter.

    Raises:
        AdapterError: a setting that cannot be served.
    """
    bottleneck_settings(folder)
    return BottleneckAdapter(folder.path, "AdapterHub bottleneck", folder.files, folder.tensors, (), folder)


def read_fusion(path: Path) -> FusionAdapter:
    """Read a fusion and its adapters, which lie in folders of their names in it or beside it.

    Raises:
        AdapterError: a folder is missing or broken, or a setting cannot be served.
    """
    folder = read_hub_folder(path, FUSION_CONFIG)
    if folder.config.get("temperature"):
        raise AdapterError(
            f"{path} fuses with a temperature, which the library lowers at every call and does not save; train the "
            "fusion with temperature=False"
        )
    names = folder.others.get("adapter_names") or folder.name.split(",")
    adapters = tuple(_adapter_of(path, str(name)) for name in names)
    for adapter in adapters:
        bottleneck_settings(adapter)
    tensors = {f"{part.name}/{key}": value for part in (folder, *adapters) for key, value in part.tensors.items()}
    files = tuple(file for part in (folder, *adapters) for file in part.files)
    return FusionAdapter(path, "AdapterHub AdapterFusion", files, tensors, (), folder, adapters)


def bottleneck_settings(folder: HubFolder) -> BottleneckSettings:
    """The settings of a bottleneck adapter.

    Raises:
        AdapterError: one that cannot be served.
    """
    config = folder.config
    for name, reason in _REFUSED.items():
        if config.get(name):
            raise AdapterError(f"{name} in {folder.files[0]} is {config[name]!r}, which cannot be served: {reason}")
    known = {field.name for field in fields(BottleneckSettings)} | _TRAINING_ONLY | set(_REFUSED) | set(_SITES)
    unknown = [name for name, value in config.items() if value and name not in known]
    if unknown:
        raise AdapterError(
            f"{unknown[0]} in {folder.files[0]} is unknown to this version and may change the result; train without it"
        )
    activation = str(config.get("non_linearity")).lower()
    if activation not in ACTIVATIONS:
        raise AdapterError(
            f"non_linearity in {folder.files[0]} is {config.get('non_linearity')!r}; allowed: {', '.join(ACTIVATIONS)}"
        )
    if not isinstance(config.get("residual_before_ln", True), bool):
        raise AdapterError(
            f"residual_before_ln in {folder.files[0]} is {config['residual_before_ln']!r}, which CLIP's blocks, whose "
            "norms come first, do not have; allowed: true, false"
        )
    scaling = config.get("scaling", 1.0)
    if scaling not in _SCALINGS and (isinstance(scaling, bool) or not isinstance(scaling, (int, float))):
        raise AdapterError(f"scaling in {folder.files[0]} is {scaling!r}; allowed: a number, {', '.join(_SCALINGS)}")
    return BottleneckSettings(**{**_known(BottleneckSettings, config), "non_linearity": activation})


def build_adapters(folder: HubFolder, model: Any) -> dict[Place, Bottleneck]:
    """The adapter's modules by place, each checked against the model's width.

    Raises:
        AdapterError: layers, widths or tensors that do not fit.
    """
    settings = bottleneck_settings(folder)
    groups = folder.grouped(_ADAPTER_KEY)
    check_layers(folder, groups, {site for name, site in _SITES.items() if folder.config.get(name)}, model)
    return {place: _bottleneck(folder, place, tensors, settings, model) for place, tensors in groups.items()}


def _bottleneck(
    folder: HubFolder, place: Place, tensors: Mapping[str, torch.Tensor], settings: BottleneckSettings, model: Any
) -> Bottleneck:
    width = width_of(free_blocks(model, place.tower)[place.layer])
    up = tensors.get("adapter_up.weight")
    if up is None or up.ndim != 2 or up.shape[0] != width:
        given = "missing" if up is None else f"of shape {tuple(up.shape)}"
        raise AdapterError(
            f"{_where(folder, place)} does not fit the model: adapter_up.weight is {given}, and the {place.tower} "
            f"tower is {width} wide; give the checkpoint that the adapter was trained on"
        )
    module = Bottleneck(width, up.shape[1], settings)
    # The norm before the bottleneck is saved twice: alone, and as the first of adapter_down.
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("adapter_norm_before.")}
    load_exactly(module, own, _where(folder, place))
    return module.eval()


def _attach(model: Any, sites: Sites) -> None:
    blocks = {tower: free_blocks(model, tower) for tower in {place.tower for place in sites}}
    for tower, of_tower in blocks.items():
        for layer, block in enumerate(of_tower):
            adapt(block, {cast(Site, p.part): site for p, site in sites.items() if p[:2] == (tower, layer)})


def _adapter_of(fusion: Path, name: str) -> HubFolder:
    places = (fusion / name, fusion.resolve().parent / name)
    found = next((place for place in places if (place / ADAPTER_CONFIG).is_file()), None)
    if found is None:
        raise AdapterError(
            f"{fusion} fuses the adapter {name!r}, which is neither at {places[0]} nor at {places[1]}; save it there "
            "with save_adapter or save_all_adapters"
        )
    return read_hub_folder(found, ADAPTER_CONFIG)


def _known(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: config[field.name] for field in fields(kind) if field.name in config}


def _where(folder: HubFolder, place: Place) -> str:
    return f"the {place.part} adapter of layer {place.layer} of the {place.tower} tower in {folder.path}"
