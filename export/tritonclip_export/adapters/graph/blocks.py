"""The transformer blocks of open_clip's native towers, and how they make room for adapters."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import open_clip, torch

Tower = Literal["text", "vision"]
Site = Literal["attention", "output"]

_Block = open_clip.transformer.ResidualAttentionBlock


class AdaptedBlock(open_clip.transformer.ResidualAttentionBlock):  # type: ignore[misc]
    """A block whose two residual additions may be adapters' instead: `site(hidden, residual)`, both [N, L, width].

    A block becomes one by its class, so that its names, weights and hooks stay.
    """

    def forward(
        self,
        q_x: torch.Tensor,
        k_x: torch.Tensor | None = None,
        v_x: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Self-attention and MLP; `k_x` and `v_x` are for cross-attention, which CLIP's blocks have not."""
        hidden = self.ls_1(self.attention(q_x=self.ln_1(q_x), attn_mask=attn_mask))
        middle = self._add("attention", hidden, q_x)
        hidden = self.ls_2(self.mlp(self.ln_2(middle)))
        return self._add("output", hidden, middle)

    def _add(self, site: Site, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if site not in self.adapters:
            return residual + hidden
        added: torch.Tensor = self.adapters[site](hidden, residual)
        return added


def adapt(block: nn.Module, sites: dict[Site, nn.Module]) -> None:
    """Give `block` the adapters of its sites."""
    block.__class__ = AdaptedBlock
    block.adapters = nn.ModuleDict({str(site): module for site, module in sites.items()})


def native_blocks(model: Any, tower: Tower) -> list[Any]:
    """The blocks of one of open_clip's native transformers, the first layer first.

    Raises:
        AdapterError: the tower is none.
    """
    blocks = _blocks(model, tower)
    if not blocks or not all(isinstance(block, _Block) for block in blocks):
        raise AdapterError(
            f"the {tower} tower is of {type(_owner(model, tower)).__name__}, without CLIP's plain transformer blocks, "
            "where this adapter sits; give the CLIP that it was trained on, with open_clip's native towers"
        )
    return blocks


def free_blocks(model: Any, tower: Tower) -> list[Any]:
    """The same, none of them adapted yet.

    Raises:
        AdapterError: see `native_blocks`, or the tower has adapters already.
    """
    blocks = native_blocks(model, tower)
    if any(isinstance(block, AdaptedBlock) for block in blocks):
        raise AdapterError(
            f"the {tower} tower has adapters already, and one block takes one set; compose several with AdapterFusion"
        )
    return blocks


def layer_count(model: Any, tower: Tower) -> int:
    """How many blocks a tower has; 0 for one that is no transformer of open_clip's."""
    return len(_blocks(model, tower))


def _owner(model: Any, tower: Tower) -> Any:
    return getattr(model, "visual" if tower == "vision" else "text", model)


def _blocks(model: Any, tower: Tower) -> list[nn.Module]:
    return list(getattr(getattr(_owner(model, tower), "transformer", None), "resblocks", ()))


def width_of(block: Any) -> int:
    """The width of a block's hidden states."""
    return int(block.ln_1.normalized_shape[0])
