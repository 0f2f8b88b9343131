"""NaFlex: the size at which an image becomes whole patches, and the rows in which they travel.

The rows of one image, uint8 [1 + max_num_patches, 3 * patch_size²]: row 0 begins with the grid, the rows and columns
of patches, two bytes each and the low one first; then come the patches, row by row, each (y, x, RGB); the rest is 0.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# Where transformers' search for a scale begins and ends, and how fine it is.
_LEAST_SCALE, _MOST_SCALE, _PRECISION = 1e-6, 100.0, 1e-5


def patched_size(size: tuple[int, int], patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """The (width, height) to which transformers' `get_image_size_for_max_num_patches` brings an image of `size`.

    Both sides are whole patches, at least one, and not more than `max_num_patches` together.
    """
    low, high = _LEAST_SCALE, _MOST_SCALE
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        width, height = _scaled(size, middle, patch_size)
        fits = width * height <= max_num_patches * patch_size**2
        low, high = (middle, high) if fits else (low, middle)
    return _scaled(size, low, patch_size)


def _scaled(size: tuple[int, int], scale: float, patch_size: int) -> tuple[int, int]:
    width, height = (max(math.ceil(side * scale / patch_size), 1) * patch_size for side in size)
    return width, height


def to_rows(pixels: Pixels, patch_size: int, max_num_patches: int) -> Pixels:
    """The rows of an image, uint8 [H, W, 3], whose sides are whole patches."""
    grid = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    patches = pixels.reshape(grid[0], patch_size, grid[1], patch_size, 3).swapaxes(1, 2)
    rows = np.zeros((1 + max_num_patches, 3 * patch_size**2), np.uint8)
    rows[0, :4] = np.array(grid, "<u2").view(np.uint8)
    rows[1 : 1 + grid[0] * grid[1]] = patches.reshape(grid[0] * grid[1], -1)
    return rows
