"""Turns served towers into float16 in place, and gives them back as graphs whose every cast is explicit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from tritonclip_export.checkpoints.hugging_face.naflex import MASKED
from tritonclip_export.frameworks import torch
from tritonclip_export.towers.precision.calibrate import Activities, Activity
from tritonclip_export.towers.precision.policy import Float16Policy, cast

# Probes are few: what serving sees may be this many times larger than what calibration saw.
HEADROOM = 8
LIMIT = torch.finfo(torch.float16).max / HEADROOM
# Between 32 and 64 float16 has steps of 1/32, so that rounding a score changes its share of the attention by 1.6 %.
MOST_SCORE = 64.0

# Classes of torch, timm, open_clip and transformers, such as LayerNormFp32, BatchNormAct2d, T5LayerNorm, SimpleNorm2d.
_NORM = re.compile(r"Norm(Act)?([123]d)?(Fp32|Exportable)?$")


class TypedTower(nn.Module):
    """A tower whose products run in float16; inputs, outputs and `any_length` are the tower's own."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.any_length = getattr(tower, "any_length", False)
        self.policy = Float16Policy()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Embed `values`, uint8 pixels or int32 ids, as float32."""
        with self.policy.reset():
            embedding: torch.Tensor = self.tower(values)
        return embedding


def to_float16(
    towers: Sequence[nn.Module], calibrations: Sequence[Activities]
) -> tuple[list[TypedTower], list[list[str]]]:
    """Convert `towers`, which may share modules, in place.

    Args:
        calibrations: what `calibrate.recording` saw of each in float32.

    Returns:
        the typed towers, and for each the names of its islands: modules that stay in float32 because of their values.
    """
    typed, islands, wide = [], [], set()
    for tower, activities in zip(towers, calibrations, strict=True):
        result = TypedTower(tower)
        near = [name for name, activity in activities.items() if _is_near(activity, tower.get_submodule(name))]
        for name, activity in activities.items():
            wide |= _place(tower.get_submodule(name), activity, result.policy, near=name in near)
        typed.append(result.eval())
        islands.append(near)
    for tower in towers:
        _narrow(tower, wide)
    return typed, islands


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of any library, and nothing that merely holds one."""
    return bool(_NORM.search(type(module).__name__)) and not any(map(_is_weighted, module.children()))


def _is_near(activity: Activity, module: nn.Module) -> bool:
    own = [parameter.detach().abs().max() for parameter in module.parameters(recurse=False) if parameter.numel()]
    weight = max(map(float, own), default=0.0)
    return not max(activity.maximum, activity.heads, weight) <= LIMIT or activity.scores > MOST_SCORE


def _place(module: nn.Module, activity: Activity, policy: Float16Policy, *, near: bool) -> set[nn.Module]:
    """Give a module its casts; returns the modules whose weights stay float32."""
    if is_norm(module):
        _region(module, policy.widen, None if near else torch.float16)
        return set(module.modules())
    if not near:
        return set()
    # Where it projects by itself, its children's weights are its own.
    if _is_weighted(module) or activity.heads > LIMIT:
        _region(module, policy.widen, None)
        return set(module.modules())
    if activity.scores > MOST_SCORE:
        _region(module, policy.widen_scores, None, widens_input=False)
    if activity.maximum > LIMIT:
        # A sum of what its layers give: it runs in float32 where one of its operands is.
        module.register_forward_pre_hook(_widen_input, with_kwargs=True)
    return {module}


def _is_weighted(module: nn.Module) -> bool:
    """Whether a module multiplies by weights itself, without calling those of its children."""
    has_children = any(True for _ in module.children())
    return isinstance(module, nn.MultiheadAttention) or (
        not has_children and any(True for _ in module.parameters(recurse=False))
    )


def _region(
    module: nn.Module, widen: Callable[[int], None], output: torch.dtype | None, *, widens_input: bool = True
) -> None:
    def enter(_: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
        widen(1)
        return (cast(args, torch.float32), cast(kwargs, torch.float32)) if widens_input else None

    def leave(_: nn.Module, args: Any, result: Any) -> Any:
        widen(-1)
        return result if output is None else cast(result, output)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)


def _widen_input(_: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
    return cast(args, torch.float32), cast(kwargs, torch.float32)


def _narrow(tower: nn.Module, wide: set[nn.Module]) -> None:
    """Round the weights, one at a time, but for those of `wide` modules, and of norms that no probe passed."""
    for module in tower.modules():
        if module in wide or is_norm(module):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.half()
        for name, buffer in module.named_buffers(recurse=False):
            # The tower's own are mean and scale of the pixels.
            if module is not tower and buffer.dtype == torch.float32:
                setattr(module, name, buffer.half())
    mask = getattr(tower, "attn_mask", None)
    if mask is not None:
        tower.attn_mask = mask.clamp(min=MASKED).half()
