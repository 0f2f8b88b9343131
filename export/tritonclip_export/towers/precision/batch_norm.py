"""Multiplies batch norms into the convolutions before them, where they cost and lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from tritonclip_export.frameworks import torch


def fold_batch_norms(tower: nn.Module, example: torch.Tensor) -> list[str]:
    """Fold in place what `tower` runs directly after a convolution when it embeds `example`.

    In float16 each would be an island of its own between two casts; folded in float32, it is rounded with the weights.

    Returns:
        the names of the norms that are gone: they are left as their activations, or as nothing.
    """
    if not any(map(_is_batch_norm, tower.modules())):
        return []
    pairs = _pairs(tower, example)
    names = {module: name for name, module in tower.named_modules()}
    for norm, convolution in pairs.items():
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, child = names[norm].rpartition(".")
        setattr(tower.get_submodule(parent), child, _what_is_left(norm))
    return [names[norm] for norm in pairs]


def _pairs(tower: nn.Module, example: torch.Tensor) -> dict[Any, Any]:
    """Every batch norm whose input is the whole output of one convolution that nothing else takes in."""
    makers: dict[int, Any] = {}
    takers: dict[int, list[nn.Module]] = {}
    kept = []

    def made(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            makers[id(output)] = module
            # An id is of one tensor as long as that lives.
            kept.append(output)

    def taken(module: nn.Module, args: Sequence[Any]) -> None:
        for value in args:
            if isinstance(value, torch.Tensor):
                takers.setdefault(id(value), []).append(module)
                kept.append(value)

    hooks = [module.register_forward_pre_hook(taken) for module in tower.modules()]
    hooks += [module.register_forward_hook(made) for module in tower.modules()]
    try:
        with torch.no_grad():
            tower(example)
    finally:
        for hook in hooks:
            hook.remove()
    calls = list(makers.values())
    return {
        takers[key][0]: convolution
        for key, convolution in makers.items()
        if len(takers.get(key, ())) == 1 and _is_batch_norm(takers[key][0]) and calls.count(convolution) == 1
    }


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.track_running_stats and module.affine


def _what_is_left(norm: Any) -> nn.Module:
    """Of timm's BatchNormAct2d the activation."""
    after = [child for name in ("drop", "act") if (child := getattr(norm, name, None)) is not None]
    return nn.Sequential(*after) if after else nn.Identity()
