"""The grammar of PEFT's tensor names: which module, which part of its adaptation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_PART = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<bias>B\.bias)|(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?)$"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta$")


@dataclass(frozen=True)
class LowRank:
    """One adapted module.

    Attributes:
        trained: its name in the model that was trained, with PEFT's `base_layer` where it wrapped one.
        a: float32 [r, in], conv [r, in, kh, kw], embedding [r, vocabulary].
        b: float32 [out, r], conv [out, r, 1, 1], embedding [width, r].
        bias: float32 [out] of `lora_bias`, or None.
        magnitude: float32 of DoRA, or None.
        embedding: whether the module is an embedding table.
    """

    trained: str
    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    magnitude: torch.Tensor | None
    embedding: bool

    @property
    def module(self) -> str:
        """Its name in the plain model, without PEFT's wrappers."""
        return unwrapped(self.trained)


@dataclass
class Parts:
    """The tensors of an adapter by what they do; all in float32."""

    low_rank: list[LowRank] = field(default_factory=list)
    # Rows of an embedding table that replace the base's, by the table's module name.
    token_rows: dict[str, torch.Tensor] = field(default_factory=dict)
    # Whole tensors that replace the base's (modules_to_save, trained biases), by the plain name.
    replacements: dict[str, torch.Tensor] = field(default_factory=dict)


def unwrapped(name: str) -> str:
    """A module's or tensor's name without the wrappers that PEFT put around it."""
    return name.replace(".base_layer", "")


def sort_parts(tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Sort an adapter's tensors (names without PEFT's prefix) by what they do.

    Raises:
        AdapterError: a module has A without B or B without A.
    """
    parts = Parts()
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if match := _PART.match(key):
            groups.setdefault(match["module"], {})[match["bias"] or match["part"]] = tensor.float()
        elif match := _TOKENS.match(key):
            parts.token_rows[unwrapped(match["module"])] = tensor.float()
        else:
            parts.replacements[unwrapped(key)] = tensor.float()
    parts.low_rank = [_low_rank(module, group) for module, group in groups.items()]
    return parts


def _low_rank(module: str, group: Mapping[str, torch.Tensor]) -> LowRank:
    embedding = any(part.startswith("embedding_") for part in group)
    prefix = "embedding_" if embedding else ""
    for part, other in (("A", "B"), ("B", "A")):
        if prefix + part not in group:
            raise AdapterError(
                f"{module} has lora_{prefix}{other} but no lora_{prefix}{part}; the adapter was saved "
                "incompletely. Save it again with PEFT."
            )
    return LowRank(
        trained=module,
        a=group[f"{prefix}A"],
        b=group[f"{prefix}B"],
        bias=group.get("B.bias"),
        magnitude=group.get("magnitude_vector"),
        embedding=embedding,
    )
