"""What flows through a tower: the largest value at every module, and samples to compare two precisions on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as functional
from torch import nn
from torch.overrides import TorchFunctionMode

from tritonclip_export.frameworks import torch
from tritonclip_export.towers.precision.policy import ATTENTION, MULTI_HEAD_ATTENTION

# Values kept of each module's input and output, evenly spaced over those of the first batch.
SAMPLE = 4096
SOFTMAX = {functional.softmax, torch.softmax, torch.Tensor.softmax}
_MULTI_HEAD_SIGNATURE = inspect.signature(MULTI_HEAD_ATTENTION)
# Scores below are of masked places.
_MASKED = -1e3


@dataclass
class Activity:
    """What one module saw over all probes.

    Attributes:
        kind: the module's class.
        maximum: the largest absolute value that went in or out.
        scores: the largest absolute attention score computed inside, before the mask.
        heads: the largest absolute query, key or value that an attention projects by itself, without a module.
        given, made: samples of its floating inputs and outputs, float32 [up to SAMPLE].
        finite: whether all that went out was.
    """

    kind: str
    maximum: float = 0.0
    scores: float = 0.0
    heads: float = 0.0
    given: torch.Tensor | None = None
    made: torch.Tensor | None = None
    finite: bool = True


Activities = dict[str, Activity]


@contextmanager
def recording(tower: nn.Module) -> Iterator[Activities]:
    """Fill the yielded dict, by module name and in the order in which they end, while `tower` runs inside."""
    recorder = _Recorder()
    hooks = []
    for name, module in tower.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(recorder.enter(name, module), with_kwargs=True))
            hooks.append(module.register_forward_hook(recorder.leave(name), always_call=True))
    try:
        with recorder:
            yield recorder.activities
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.activities: Activities = {}
        self._open: list[Activity] = []

    def enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            activity = self.activities.get(name) or Activity(type(module).__name__)
            self._open.append(activity)
            # Only query, key and value, or what is embedded: what comes after is a mask, whose values mean nothing.
            values = _floats([args, kwargs])[: 3 if isinstance(module, nn.MultiheadAttention) else 1]
            activity.maximum = max(activity.maximum, _largest(values))
            if activity.given is None:
                activity.given = _sample(values)

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            activity = self._open.pop()
            self.activities.setdefault(name, activity)
            values = _floats(output)
            activity.maximum = max(activity.maximum, _largest(values))
            activity.finite &= all(_reach(value) < math.inf for value in values)
            if activity.made is None:
                activity.made = _sample(values)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if self._open and func is ATTENTION:
            given = dict(zip(("query", "key"), args, strict=False)) | named
            self._note_scores(_attention_scores(given["query"], given["key"], named.get("scale")))
        elif self._open and func is MULTI_HEAD_ATTENTION:
            query, key, value = _project(*args, **named)
            self._open[-1].heads = max(self._open[-1].heads, _largest([query, key, value]))
            self._note_scores(_attention_scores(query, key, None))
        elif self._open and func in SOFTMAX:
            scores = args[0] if args else named["input"]
            self._note_scores(float(torch.where(scores > _MASKED, scores, 0).abs().max()))
        return func(*args, **named)

    def _note_scores(self, largest: float) -> None:
        activity = self._open[-1]
        activity.scores = max(activity.scores, largest)


def _project(*args: Any, **named: Any) -> list[torch.Tensor]:
    """Queries, keys and values [N * heads, L, d] inside `multi_head_attention_forward`, whose arguments are given."""
    given = _MULTI_HEAD_SIGNATURE.bind(*args, **named).arguments
    if given.get("use_separate_proj_weight"):
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = given["in_proj_weight"].chunk(3)
    biases = [None] * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    sources = (given["query"], given["key"], given["value"])
    projected = [functional.linear(*each) for each in zip(sources, weights, biases, strict=True)]
    rows = projected[0].shape[1] * given["num_heads"]
    return [one.reshape(one.shape[0], rows, -1).transpose(0, 1) for one in projected]


def _attention_scores(query: torch.Tensor, key: torch.Tensor, scale: float | None) -> float:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # One item at a time: the scores of a batch may be larger than the model.
    pairs = zip(query, key, strict=True)
    return max(float((q.float() @ k.float().transpose(-2, -1)).abs().max()) for q, k in pairs) * scale


def _floats(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values] if values.is_floating_point() and values.numel() else []
    if isinstance(values, Mapping):
        values = list(values.values())
    return [tensor for value in values for tensor in _floats(value)] if isinstance(values, (list, tuple)) else []


def _largest(values: Sequence[torch.Tensor]) -> float:
    """The largest absolute value; of finite ones where there are others, such as in a mask."""
    largest = 0.0
    for value in values:
        if not (most := _reach(value)) < math.inf:
            most = _reach(torch.where(value.isfinite(), value, 0))
        largest = max(largest, most)
    return largest


def _reach(value: torch.Tensor) -> float:
    least, most = value.aminmax()
    # NaN, which aminmax hands on, compares as false.
    return max(abs(float(least)), abs(float(most))) if least.isfinite() and most.isfinite() else math.inf


def _sample(values: Sequence[torch.Tensor]) -> torch.Tensor | None:
    if not values:
        return None
    flat = values[0].detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].float().clone()
