"""Does an adapted module fit the tensor it goes into?"""

from __future__ import annotations

from tritonclip_export.adapters.lora.fitting.folding import RULES, has_input_norm
from tritonclip_export.adapters.lora.naming.keys import LowRank
from tritonclip_export.adapters.lora.targets import Kind, Target
from tritonclip_export.frameworks import torch

_NDIM: dict[Kind, int] = {"linear": 2, "conv": 4, "embedding": 2}


def misfit(module: LowRank, target: Target, weight: torch.Tensor, rank: int) -> str | None:
    """What does not fit, with both shapes, or None.

    Args:
        weight: the base weight of `target`.
        rank: the rank that adapter_config.json gives the module.
    """
    if weight.ndim != _NDIM[target.kind]:
        return f"{target.weight} is {tuple(weight.shape)} in this model, which a {target.kind} LoRA does not fit"
    a, b, magnitude = RULES[target.kind].shapes(tuple(weight.shape), rank)
    if has_input_norm(target.kind, module.magnitude):
        magnitude = (1, weight.shape[1])
    wanted = {"A": (module.a, a), "B": (module.b, b), "magnitude": (module.magnitude, magnitude)}
    wanted["B.bias"] = (module.bias, (weight.shape[0],))
    for part, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            return (
                f"lora_{part} of {module.trained} is {tuple(tensor.shape)}, but {target.weight} is "
                f"{tuple(weight.shape)} in this model and needs {shape} at rank {rank}"
            )
    return None
