"""What all formats are turned into: low-rank layers by module name, and from them an `Adapter`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import LoraSettings
from tritonclip_export.adapters.lora.formats.files import AdapterFile
from tritonclip_export.adapters.lora.naming.namespace import Namespace
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Layer:
    """One adapted module: scale * B @ A is added to its weight.

    Attributes:
        a: [r, in], conv [r, in, kh, kw], embedding [r, vocabulary].
        b: [out, r], conv [out, r, 1, 1], embedding [width, r].
        scale: alpha / r, or what the format has in its place.
        magnitude: DoRA's, [out] or [1, in] by the axis that its norm leaves, or None.
        embedding: whether the module is an embedding table.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    embedding: bool = False

    @property
    def rank(self) -> int:
        """The rows of A."""
        return self.a.shape[0]

    def part(self, index: int, count: int) -> Layer:
        """The same layer for one of `count` equal blocks of output rows."""
        magnitude = None if self.magnitude is None else self.magnitude.chunk(count)[index].clone()
        return replace(self, b=self.b.chunk(count)[index].clone(), magnitude=magnitude)


def dense(delta: torch.Tensor, magnitude: torch.Tensor | None = None) -> Layer:
    """A difference of full rank, [out, in] or [out, in, kh, kw], as a layer: B is the identity."""
    identity = torch.eye(delta.shape[0])
    b = identity if delta.ndim == 2 else identity[..., None, None]
    return Layer(delta, b, 1.0, magnitude)


def low_rank(
    name: str, parts: Mapping[str, torch.Tensor], keys: tuple[str, str], file: AdapterFile
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the layer `name`, float32, by their keys in `parts`.

    Raises:
        AdapterError: one is missing, or they have no rank in common.
    """
    for present, missing in (keys, keys[::-1]):
        if missing not in parts:
            raise AdapterError(
                f"{name} in {file.path} has {present} but no {missing}; the adapter was saved incompletely. "
                "Save it again."
            )
    a, b = (parts[key].float() for key in keys)
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{name} in {file.path} has {keys[0]} {tuple(a.shape)} and {keys[1]} {tuple(b.shape)}, which have no rank "
            "in common; save the adapter again."
        )
    return a, b


def make_adapter(
    file: AdapterFile,
    namespace: Namespace,
    layers: Mapping[str, Layer],
    format: str,  # noqa: A002 - what it is called everywhere
    *,
    plain: Mapping[str, torch.Tensor] | None = None,
    notes: Sequence[str] = (),
) -> Adapter:
    """Layers by module name, and whole tensors that replace the base's, as an `Adapter`.

    Raises:
        AdapterError: there are no layers.
    """
    if not layers:
        raise AdapterError(f"{file.path} holds no LoRA of a CLIP tower; give the file that has one.")
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: layer.scale * layer.rank for name, layer in layers.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    settings = LoraSettings(
        r=rank,
        lora_alpha=alpha,
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
        rank_pattern=_exceptions(ranks, rank),
        alpha_pattern=_exceptions(alphas, alpha),
    )
    tensors = {key: tensor for name, layer in layers.items() for key, tensor in _tensors(name, layer).items()}
    return Adapter(
        file.path,
        settings,
        namespace,
        {**tensors, **(plain or {})},
        (file.path,),
        format=format,
        notes=tuple(notes),
        whole_model=bool(plain),
    )


def _commonest(values: Iterable[Value]) -> Value:
    return Counter(values).most_common(1)[0][0]


def _exceptions(values: Mapping[str, Value], usual: Value) -> dict[str, Value]:
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def _tensors(name: str, layer: Layer) -> dict[str, torch.Tensor]:
    keys = ("lora_embedding_A", "lora_embedding_B") if layer.embedding else ("lora_A.weight", "lora_B.weight")
    tensors = {f"{name}.{keys[0]}": layer.a, f"{name}.{keys[1]}": layer.b}
    if layer.magnitude is not None:
        tensors[f"{name}.lora_magnitude_vector"] = layer.magnitude
    return tensors
