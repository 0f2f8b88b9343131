"""LoRA layers of other tools than PEFT, each written from its formula, and put into a plain open_clip model.

loralib (https://github.com/microsoft/LoRA), loraclip (https://pypi.org/project/loraclip), CLIP-LoRA
(https://github.com/MaxZanella/CLIP-LoRA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonclip_export.frameworks import torch

functional = torch.nn.functional
NOISE = 0.25
# Of the layers of loralib that `adapt_mlp` and `adapt_attention` put in.
ALPHA, RANK = 6, 3


def noise(*shape: int) -> torch.nn.Parameter:
    """What stands for trained values."""
    return torch.nn.Parameter(NOISE * torch.randn(*shape))


class Linear(torch.nn.Module):
    """x W^T + b + scale * x A^T B^T; `merge` does what loralib's `.eval()` does."""

    def __init__(self, base: torch.nn.Linear, r: int, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.lora_A, self.lora_B = noise(r, base.in_features), noise(base.out_features, r)
        self.scale, self.merged = scale, False

    def merge(self) -> None:
        self.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
        self.merged = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = functional.linear(x, self.weight, self.bias)
        return plain if self.merged else plain + self.scale * (x @ self.lora_A.t() @ self.lora_B.t())


class MergedLinear(torch.nn.Module):
    """Groups of one projection, of which some have an A and a B of their own."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, enabled: list[bool], r: int, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())
        self.enabled, self.r, self.scale = enabled, r, scale
        width = weight.shape[0] // len(enabled)
        self.lora_A = noise(r * sum(enabled), weight.shape[1])
        self.lora_B = noise(width * sum(enabled), r)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = iter(zip(self.lora_A.split(self.r), self.lora_B.chunk(sum(self.enabled)), strict=True))
        width = self.weight.shape[0] // len(self.enabled)
        zeros = x.new_zeros(*x.shape[:-1], width)
        changes = []
        for enabled in self.enabled:
            a, b = next(pairs) if enabled else (None, None)
            changes.append(x @ a.t() @ b.t() if a is not None and b is not None else zeros)
        return functional.linear(x, self.weight, self.bias) + self.scale * torch.cat(changes, dim=-1)


class Embedding(torch.nn.Module):
    """Rows of W plus scale * (B A)^T."""

    def __init__(self, base: torch.nn.Embedding, r: int, scale: float) -> None:
        super().__init__()
        self.weight = base.weight
        self.lora_A, self.lora_B = noise(r, base.num_embeddings), noise(base.embedding_dim, r)
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        after_a = functional.embedding(ids, self.lora_A.t())
        return functional.embedding(ids, self.weight) + self.scale * (after_a @ self.lora_B.t())


class Conv2d(torch.nn.Module):
    """W + scale * (B A) seen as [out, in, k, k]; the base is a module inside, as loralib keeps it."""

    def __init__(self, base: torch.nn.Conv2d, r: int, scale: float) -> None:
        super().__init__()
        self.conv = base
        out, channels, kernel, _ = base.weight.shape
        self.lora_A, self.lora_B = noise(r * kernel, channels * kernel), noise(out * kernel, r * kernel)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight + self.scale * (self.lora_B @ self.lora_A).view(self.conv.weight.shape)
        return functional.conv2d(x, weight, self.conv.bias, stride=self.conv.stride)


class Attention(torch.nn.Module):
    """open_clip's self-attention with modules for its projections, which people replace by LoRA layers."""

    def __init__(self, base: torch.nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = base.num_heads
        width = base.embed_dim
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(index * width, (index + 1) * width)
            setattr(self, name, _linear(base.in_proj_weight[rows], base.in_proj_bias[rows]))
        self.proj = _linear(base.out_proj.weight, base.out_proj.bias)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, query: torch.Tensor, *_: Any, attn_mask: Any = None, **__: Any) -> tuple[torch.Tensor, None]:
        batch, length, width = query.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.project(query))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width)), None


class FusedAttention(Attention):
    """The same with one module for q, k and v."""

    def __init__(self, base: torch.nn.MultiheadAttention) -> None:
        super().__init__(base)
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv = _linear(base.in_proj_weight, base.in_proj_bias)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.qkv(x).chunk(3, dim=-1)


class LoraclipAttention(Attention):
    """loraclip's: in_proj_weight with one pair for all of q, k and v, and a LoRA Linear as out_proj."""

    def __init__(self, base: torch.nn.MultiheadAttention, r: int) -> None:
        super().__init__(base)
        del self.q_proj, self.k_proj, self.v_proj, self.proj
        self.in_proj_weight, self.in_proj_bias = base.in_proj_weight, base.in_proj_bias
        self.in_proj_weight_lora_A = noise(r, base.embed_dim)
        self.in_proj_weight_lora_B = noise(3 * base.embed_dim, r)
        self.out_proj = Linear(base.out_proj, r, 1 / r)
        self.r = r

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        change = (x @ self.in_proj_weight_lora_A.t() @ self.in_proj_weight_lora_B.t()) / self.r
        return (functional.linear(x, self.in_proj_weight, self.in_proj_bias) + change).chunk(3, dim=-1)

    def proj(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(x)


def blocks(model: Any, *towers: str) -> list[Any]:
    """The residual blocks of the named towers ("text", "vision"), text first."""
    found = {"text": model.transformer, "vision": model.visual.transformer}
    return [block for tower in towers for block in found[tower].resblocks]


def lora_only(model: Any) -> dict[str, torch.Tensor]:
    """loralib's `lora_state_dict(model)`."""
    return {key: tensor for key, tensor in model.state_dict().items() if "lora_" in key}


def adapt_mlp(model: Any, towers: Sequence[str] = ("text", "vision")) -> None:
    for block in blocks(model, *towers):
        for name in ("c_fc", "c_proj"):
            setattr(block.mlp, name, Linear(getattr(block.mlp, name), RANK, ALPHA / RANK))


def adapt_attention(model: Any, enabled: str) -> None:
    for block in blocks(model, "text", "vision"):
        block.attn = FusedAttention(block.attn)
        base = block.attn.qkv
        groups = [letter in enabled for letter in "qkv"]
        block.attn.qkv = MergedLinear(base.weight.data, base.bias.data, groups, RANK, ALPHA / RANK)
        block.attn.proj = Linear(block.attn.proj, RANK, ALPHA / RANK)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.detach().clone(), bias.detach().clone()
    return layer
