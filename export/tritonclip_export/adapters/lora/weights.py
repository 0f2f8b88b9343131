"""The base weights as an adapter sees them: by its own names, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tritonclip_export.adapters.lora.naming.namespace import Namespace
from tritonclip_export.checkpoints import key_mapping
from tritonclip_export.frameworks import torch


class BaseWeights(Protocol):
    """Named float32 views of an open_clip state dict, and the way back."""

    def get(self, name: str) -> torch.Tensor | None:
        """The float32 weight of that name in the adapter's names, None if the model has none."""

    def native_name(self, name: str) -> str:
        """The state dict's own name of the tensor that holds `name`, which the model has."""

    def native(self, deltas: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Differences by the adapter's names as differences by the state dict's own names."""


class OpenClipWeights:
    """The state dict itself; `text.` before a text tower is optional on both sides."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self._state_dict = state_dict
        self._names = {key_mapping.canonical(name): name for name in state_dict}

    def get(self, name: str) -> torch.Tensor | None:
        """See `BaseWeights`."""
        own = self._names.get(key_mapping.canonical(name))
        return None if own is None else self._state_dict[own].float()

    def native_name(self, name: str) -> str:
        """See `BaseWeights`."""
        return self._names[key_mapping.canonical(name)]

    def native(self, deltas: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `BaseWeights`."""
        return {self.native_name(name): delta for name, delta in deltas.items()}


class HfWeights:
    """The same weights by Hugging Face's names: q, k and v apart, projections transposed."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self._open_clip = OpenClipWeights(state_dict)

    def get(self, name: str) -> torch.Tensor | None:
        """See `BaseWeights`."""
        match = key_mapping.of_hf(name)
        if match is None:
            # A whole state dict may have tensors that Hugging Face does not, such as a ResNet's.
            return self._open_clip.get(name)
        weight = self._open_clip.get(match.native)
        if weight is None:
            return None
        return match.split(weight)[match.hf.index(name)]

    def native_name(self, name: str) -> str:
        """See `BaseWeights`."""
        match = key_mapping.of_hf(name)
        return self._open_clip.native_name(name if match is None else match.native)

    def native(self, deltas: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `BaseWeights`; a part of q, k, v that no delta names stays as it is."""
        matches = {match.native: match for match in map(key_mapping.of_hf, deltas) if match is not None}
        joined = {
            native: match.join([deltas[part] if part in deltas else self._zeros(part) for part in match.hf])
            for native, match in matches.items()
        }
        plain = {name: delta for name, delta in deltas.items() if key_mapping.of_hf(name) is None}
        return self._open_clip.native({**joined, **plain})

    def _zeros(self, name: str) -> torch.Tensor:
        weight = self.get(name)
        assert weight is not None, name
        return torch.zeros_like(weight)


_HF_TOWERS = ("text_model.", "vision_model.")
_BY_NAMESPACE: dict[Namespace, type[OpenClipWeights] | type[HfWeights]] = {
    "open_clip": OpenClipWeights,
    "hf": HfWeights,
}


def base_weights(namespace: Namespace, state_dict: Mapping[str, torch.Tensor]) -> BaseWeights:
    """`state_dict` by the names of `namespace`; a model that transformers runs has Hugging Face's names already."""
    if any(name.startswith(_HF_TOWERS) for name in state_dict):
        return OpenClipWeights(state_dict)
    return _BY_NAMESPACE[namespace](state_dict)
