"""AdapterHub's bottleneck adapters and AdapterFusion, as the `adapters` library (1.3.0) computes them on CLIP.

With h the sub-layer's output and r the residual stream beside it, an adapter's site gives h + r without an adapter and
r + h + scaling * up(act(down(z))) with one, where z is h + r (Pfeiffer), h (Houlsby) or r (parallel); the other
settings move layer norms and residuals around that. From `adapters.methods.modeling` and `methods.bottleneck`;
CLIP's blocks hand no layer norm to the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tritonclip_export.frameworks import open_clip, torch

# transformers' ACT2FN and the library's own leakyrelu; the tanh forms differ by their constants' last digits.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leakyrelu": nn.LeakyReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "gelu_python": nn.GELU,
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
        partial(nn.GELU, approximate="tanh"),
    ),
    "quick_gelu": open_clip.transformer.QuickGELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


@dataclass(frozen=True)
class BottleneckSettings:
    """The fields of `adapters.BnConfig` that change what an adapter computes; its defaults."""

    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    residual_before_ln: bool = True
    adapter_residual_before_ln: bool = False
    is_parallel: bool = False
    scaling: float | str = 1.0


@dataclass(frozen=True)
class FusionSettings:
    """The fields of `adapters.AdapterFusionConfig` that change what a fusion computes; those of "dynamic"."""

    key: bool = True
    query: bool = True
    value: bool = True
    query_before_ln: bool = False
    residual_before: bool = False


class Bottleneck(nn.Module):
    """One adapter at one site: (hidden, residual), float32 [N, L, width], to the site's output [N, L, width].

    Its parameters carry the names that AdapterHub saves.
    """

    def __init__(self, width: int, hidden: int, settings: BottleneckSettings) -> None:
        super().__init__()
        self.settings = settings
        norm = [nn.LayerNorm(width)] if settings.ln_before else []
        activation = ACTIVATIONS[settings.non_linearity]()
        self.adapter_down = nn.Sequential(*norm, nn.Linear(width, hidden), activation)
        self.adapter_up = nn.Linear(hidden, width)
        if settings.ln_after:
            self.adapter_norm_after = nn.LayerNorm(width)
        self.scaling: nn.Parameter | float = (
            nn.Parameter(torch.ones(width if settings.scaling == "channel" else 1))
            if isinstance(settings.scaling, str)
            else settings.scaling
        )

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See the class."""
        values, inner = self.inputs(hidden, residual)
        return self.finish(self._output(self.up(values), inner), hidden, residual)

    def inputs(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes into the bottleneck, and what is added to what comes out of it."""
        if self.settings.is_parallel:
            return residual, residual
        values = hidden + residual if self.settings.original_ln_before else hidden
        return values, hidden if self.settings.residual_before_ln else values

    def up(self, values: torch.Tensor) -> torch.Tensor:
        """The scaled output of the bottleneck."""
        scaled: torch.Tensor = self.adapter_up(self.adapter_down(values)) * self.scaling
        return scaled

    def finish(self, values: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The block's own residuals around the adapters' output."""
        if self.settings.is_parallel:
            values = values + hidden
        return values + residual if self.settings.original_ln_after else values

    def _output(self, up: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        if self.settings.is_parallel:
            return self._norm(up)
        if self.settings.adapter_residual_before_ln:
            return self._norm(up + inner)
        return self._norm(up) + inner

    def _norm(self, values: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.adapter_norm_after(values) if self.settings.ln_after else values
        return normed


class FusionWeights(nn.Module):
    """The attention of an AdapterFusion over its adapters; parameters as AdapterHub names them."""

    def __init__(self, width: int, settings: FusionSettings) -> None:
        super().__init__()
        self.query = nn.Linear(width, width) if settings.query else nn.Identity()
        self.key = nn.Linear(width, width) if settings.key else nn.Identity()
        self.value = nn.Linear(width, width, bias=False) if settings.value else nn.Identity()

    def forward(self, query: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
        """`query` [N, L, width] attends over the adapters' outputs `ups` [N, L, adapters, width]."""
        scores = self.key(ups) @ self.query(query).unsqueeze(-1)
        # The value projection has no bias, so it may follow the weighted sum: once instead of once per adapter.
        mixed: torch.Tensor = self.value((scores.softmax(dim=-2) * ups).sum(dim=-2))
        return mixed


class Fusion(nn.Module):
    """Several adapters at one site, mixed per token by attention; the last one's settings rule the residuals."""

    def __init__(self, adapters: Sequence[Bottleneck], weights: FusionWeights, settings: FusionSettings) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.weights = weights
        self.settings = settings

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """(hidden, residual), float32 [N, L, width], to the site's output [N, L, width]."""
        adapters: Any = self.adapters
        values, inner = adapters[-1].inputs(hidden, residual)
        before = self.settings.query_before_ln and not adapters[-1].settings.is_parallel
        ups = torch.stack([adapter.up(values) for adapter in adapters], dim=-2)
        if self.settings.residual_before:
            # Into keys and values alike: the library adds it in place to the one tensor that is both.
            ups = ups + inner.unsqueeze(-2)
        mixed = self.weights(hidden if before else values, ups)
        if not self.settings.residual_before:
            mixed = mixed + inner
        finished: torch.Tensor = adapters[-1].finish(mixed, hidden, residual)
        return finished
