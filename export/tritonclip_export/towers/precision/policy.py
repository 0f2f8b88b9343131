"""Which type an operation runs in, decided where torch calls it, so that it holds for every library's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode

from tritonclip_export.checkpoints.hugging_face.naflex import MASKED
from tritonclip_export.frameworks import torch

ATTENTION = functional.scaled_dot_product_attention
MULTI_HEAD_ATTENTION = functional.multi_head_attention_forward
# The type of their weight, the second argument, decides.
WEIGHTED = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
}
PRODUCTS = {
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.einsum,
    torch.Tensor.matmul,
    torch.Tensor.bmm,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
}
# Squares and long sums, which leave the range of float16 long before their result does.
REDUCTIONS = {
    functional.layer_norm,
    functional.group_norm,
    functional.batch_norm,
    functional.instance_norm,
    functional.rms_norm,
    functional.normalize,
    functional.adaptive_avg_pool2d,
    functional.avg_pool2d,
    torch.mean,
    torch.var,
    torch.linalg.vector_norm,
    torch.norm,
    torch.Tensor.mean,
    torch.Tensor.var,
    torch.Tensor.norm,
}
# Whose result may be out of range too, until it is divided.
SUMS = {torch.sum, torch.Tensor.sum}


class Float16Policy(TorchFunctionMode):
    """Inside it products run in float16 and reductions in float32, but for regions that are `wide`: all in float32.

    Everything else runs in the type of its operands, as torch promotes them: what leaves a wide region stays float32
    until the next product.
    """

    def __init__(self) -> None:
        super().__init__()
        self._wide = 0
        self._wide_scores = 0

    @contextmanager
    def reset(self) -> Iterator[None]:
        """Count regions from none, whatever an exception left open."""
        self._wide = self._wide_scores = 0
        with self:
            yield

    def widen(self, by: int) -> None:
        """Enter (1) or leave (-1) a region in float32."""
        self._wide += by

    def widen_scores(self, by: int) -> None:
        """Enter (1) or leave (-1) a region whose attention runs in float32, between its layers of float16 weights."""
        self._wide_scores += by

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Cast what `func` is given, and what a reduction returns."""
        named = dict(kwargs or {})
        if func in WEIGHTED:
            weight = named["weight"] if "weight" in named else args[1]
            return _product(func, args, named, weight.dtype)
        if func in PRODUCTS or func is ATTENTION or func is MULTI_HEAD_ATTENTION:
            dtype = torch.float32 if self._wide or self._wide_scores else torch.float16
            if func is ATTENTION:
                args, named = _with_finite_mask(args, named)
            return _product(func, args, named, dtype)
        if func in REDUCTIONS or func in SUMS:
            result = func(*cast(args, torch.float32), **cast(named, torch.float32))
            narrow = func in REDUCTIONS and _first(args, named).dtype == torch.float16
            return cast(result, torch.float16) if narrow else result
        return func(*args, **named)


def _product(func: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """`func` in `dtype`; outside of an export in float32 between operands and a result that are rounded to it.

    So do tensor cores, which sum in float32. A CPU's own products of float16 are up to a hundred times slower.
    """
    args, named = cast(args, dtype), cast(named, dtype)
    if dtype == torch.float32 or torch.compiler.is_compiling():
        return func(*args, **named)
    return cast(func(*cast(args, torch.float32), **cast(named, torch.float32)), dtype)


def _with_finite_mask(args: Sequence[Any], named: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of an attention with `attn_mask` as something finite to add, which float16 holds too."""
    named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | named
    mask = named.get("attn_mask")
    if named.pop("is_causal", False):
        lengths = (named["query"].shape[-2], named["key"].shape[-2])
        mask = torch.ones(lengths, dtype=torch.bool, device=named["query"].device).tril()
    if mask is not None:
        mask = (~mask).float() * MASKED if mask.dtype == torch.bool else mask.clamp(min=MASKED)
    return (), {**named, "attn_mask": mask}


def _first(args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = args[0] if args else named["input"]
    return tensor


def cast(values: Any, dtype: torch.dtype) -> Any:
    """The floating tensors in `values`, nested as they may be, in `dtype`."""
    if isinstance(values, torch.Tensor):
        return values.to(dtype) if values.is_floating_point() and values.dtype != dtype else values
    if isinstance(values, dict):
        return {name: cast(value, dtype) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(cast(value, dtype) for value in values)
    return values
