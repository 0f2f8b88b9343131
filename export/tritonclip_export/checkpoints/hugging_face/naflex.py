"""SigLIP 2 with NaFlex: an image keeps its aspect ratio, and the tower reads as many of its patches as there are.

Everywhere here one image is one array [1 + max_num_patches, 3 * patch_size²]. Row 0 begins with its grid, the rows
and columns of patches, two bytes each and the low one first; then come the patches, row by row, each (y, x, RGB); the
rest is padding, which no other patch attends to. The grid is never normalized. So all images are of one shape.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tritonclip_export.frameworks import torch

GRID_BYTES = 4
# Added to an attention score, it leaves nothing of it, and is finite in float16 too.
MASKED = -1e4


def join_rows(patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Patches [N, L, W] and grids int64 [N, 2] to rows [N, 1 + L, W] of the patches' dtype, see the module."""
    first = torch.zeros_like(patches[:, :1])
    first[:, 0, :GRID_BYTES] = torch.stack([grids % 256, grids // 256], dim=-1).flatten(1).to(patches.dtype)
    return torch.cat([first, patches], dim=1)


def split_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The opposite of `join_rows`."""
    low, high = rows[:, 0, :GRID_BYTES].long().reshape(-1, 2, 2).unbind(-1)
    return rows[:, 1:], low + 256 * high


def inside(grids: torch.Tensor, length: int) -> torch.Tensor:
    """Which of `length` patches belong to images of these `grids`: bool [N, length]."""
    return torch.arange(length, device=grids.device) < grids[:, :1] * grids[:, 1:]


def interpolations(side: int, most: int) -> torch.Tensor:
    """How each place of an axis of 1, 2 … `most` patches is mixed from `side`: float32 [most * (most + 1) / 2, side].

    Those of an axis of n patches begin at row n * (n - 1) / 2. They are torch's own antialiased bilinear weights.
    """
    # An image whose columns stay as they are: torch mistakes the layout of one that has a single column.
    unit = torch.eye(side).reshape(1, 1, side, side)
    axes = [
        nn.functional.interpolate(unit, size=(length, side), mode="bilinear", align_corners=False, antialias=True)
        for length in range(1, most + 1)
    ]
    return torch.cat([axis[0, 0] for axis in axes])


class PatchEmbeddings(nn.Module):
    """`Siglip2VisionEmbeddings` for any batch in one graph.

    transformers resizes the table of positions for one image after another. The resize works on rows and columns
    apart, so a patch's position is the table weighted by those of its row and those of its column. The numbers are the
    same but for images of a single column, where torch on a CPU mistakes the layout of transformers' table.
    """

    weights: torch.Tensor
    places: torch.Tensor

    def __init__(self, embeddings: Any, max_num_patches: int) -> None:
        super().__init__()
        self.patch_embedding = embeddings.patch_embedding
        self.position_embedding = embeddings.position_embedding
        self.most = max_num_patches
        self.register_buffer("weights", interpolations(embeddings.position_embedding_size, max_num_patches))
        self.register_buffer("places", torch.arange(max_num_patches).unsqueeze(0))

    def forward(self, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        """[N, L, 3 * patch_size²] and int64 [N, 2] to [N, L, width]."""
        # Within the tables whatever is asked: what comes from outside must not fail a batch of others. In float32, as
        # TensorRT clips no integers.
        rows, columns = spatial_shapes.float().clamp(1, self.most).long().split(1, dim=1)
        # In float32, as ONNX divides integers in five steps; the half keeps the quotient off whole numbers.
        row = ((self.places + 0.5) / columns).floor().long()
        column = self.places - row * columns
        of_row = self._weights(rows, torch.minimum(row, rows - 1))
        of_column = self._weights(columns, column)
        of_both = (of_row.unsqueeze(-1) * of_column.unsqueeze(-2)).flatten(2)
        embedded: torch.Tensor = self.patch_embedding(pixel_values) + of_both @ self.position_embedding.weight
        return embedded

    def _weights(self, lengths: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        first = (lengths * (lengths - 1) * 0.5).long()
        return nn.functional.embedding(first + places, self.weights)
