"""Several adapters into one change: sums, TIES and DARE on the full difference that each makes to a tensor.

PEFT's `add_weighted_adapter` prunes A and B apart, which is another model; here B @ A is formed first. TIES:
https://arxiv.org/abs/2306.01708. DARE: https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

Method = Literal["sum", "ties", "dare", "dare_ties"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Composition:
    """How the differences of several adapters become one.

    Attributes:
        method: "sum": sum_i w_i * D_i. "ties": trimmed, then merged by the elected sign. "dare": dropped and rescaled,
            then summed. "dare_ties": dropped and rescaled, then merged by the elected sign.
        density: the share of every tensor's values that is kept, in (0, 1]; None for a sum.
        seed: what DARE draws its values with; two exports with one seed drop the same ones.

    Raises:
        AdapterError: an unknown method, or a density that is missing, out of range, or without effect.
    """

    method: Method = "sum"
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise AdapterError(f"the merge method is {self.method!r}; allowed: {', '.join(METHODS)}.")
        if self.method == "sum" and self.density is not None:
            raise AdapterError(
                f"a density of {self.density} has no effect on a sum; leave it out, or merge by ties or dare."
            )
        if self.method != "sum" and (self.density is None or not 0 < self.density <= 1):
            raise AdapterError(
                f"merging by {self.method} needs a density above 0 and at most 1, the share of values to keep; "
                f"{self.density} was given. The papers keep 0.2 (TIES) and 0.1 to 0.9 (DARE)."
            )

    @property
    def elects_sign(self) -> bool:
        """Whether a value depends on all adapters at once, not on their sum."""
        return self.method in ("ties", "dare_ties")

    def sparsify(self, delta: torch.Tensor, adapter: int, name: str) -> torch.Tensor:
        """What is kept of `delta` (float32, any shape), the difference of the adapter number `adapter` to `name`."""
        if self.density is None or self.density == 1:
            return delta
        if self.method == "ties":
            return trim(delta, self.density)
        return drop(delta, self.density, _generator(self.seed, adapter, name))


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """TIES's first step: the largest values of the tensor stay, int(density * size) of them, the rest is 0.

    As in PEFT and mergekit tensor by tensor; the paper ranks the values of the whole model together.
    """
    flat = delta.flatten()
    kept = flat.abs().topk(int(density * flat.numel()), sorted=False).indices
    trimmed = torch.zeros_like(flat)
    trimmed[kept] = flat[kept]
    return trimmed.reshape(delta.shape)


def drop(delta: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """DARE: every value is dropped with probability 1 - density, what stays is divided by the density."""
    # Uniform numbers, not torch.bernoulli: that draws others where torch is built with MKL.
    kept = torch.rand(delta.shape, generator=generator) < density
    return delta * kept / density


def merge_by_sign(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """TIES's second and third step: the sign of the sum is elected, and the values of that sign are averaged.

    As in PEFT, the sign is elected before the weights and the mean is taken of the weighted values, over the
    adapters that have the elected sign; with equal weights it is the paper's lambda * mean.
    """
    stacked = torch.stack(list(deltas))
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agreeing = stacked.sign() == elected
    factors = torch.tensor(weights).reshape(-1, *[1] * deltas[0].ndim)
    return (stacked * agreeing * factors).sum(0) / agreeing.sum(0).clamp(min=1)


def _generator(seed: int, adapter: int, name: str) -> torch.Generator:
    """One for every tensor of every adapter, so that no draw depends on which others are merged."""
    digest = hashlib.sha256(f"{seed} {adapter} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
