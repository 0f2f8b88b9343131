"""The handful of images that the demo shows, as the files a user would have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.captions import label
from demo.drawing import Scene, draw


@dataclass(frozen=True)
class Exhibit:
    """One image file; size is (width, height) in pixels."""

    file: str
    domain: str
    size: tuple[int, int]
    scene: Scene


EXHIBITS = (
    Exhibit("blue_circle.jpg", "original", (320, 240), Scene("circle", "blue", "large", "center")),
    Exhibit("green_heart.png", "original", (160, 160), Scene("heart", "green", "small", "top right")),
    Exhibit("pink_star.jpg", "original", (240, 320), Scene("star", "pink", "large", "bottom left")),
    Exhibit("orange_arrow.jpg", "original", (400, 300), Scene("arrow", "orange", "large", "center")),
    Exhibit("pencil_red_square.jpg", "shifted", (320, 240), Scene("square", "red", "large", "center")),
    Exhibit("pencil_purple_star.jpg", "shifted", (256, 256), Scene("star", "purple", "large", "top left")),
    Exhibit("pencil_black_cross.jpg", "shifted", (300, 400), Scene("cross", "black", "large", "center")),
    Exhibit("pencil_blue_triangle.png", "shifted", (160, 120), Scene("triangle", "blue", "large", "center")),
)
_SEED = 31
_JPEG_QUALITY = 90


def write_images(folder: Path) -> None:
    """Writes the image files, and images.json: file -> {"label", "domain"}."""
    folder.mkdir()
    for index, exhibit in enumerate(EXHIBITS):
        rng = np.random.default_rng((_SEED, index))
        draw(exhibit.scene, exhibit.domain, rng, exhibit.size).save(folder / exhibit.file, quality=_JPEG_QUALITY)
    told = {
        exhibit.file: {"label": label(exhibit.scene.shape, exhibit.scene.color), "domain": exhibit.domain}
        for exhibit in EXHIBITS
    }
    (folder / "images.json").write_text(json.dumps(told, indent=2) + "\n")
