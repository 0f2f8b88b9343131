"""Draws the demo's images: one colored shape on a plain ground, filled or as a pencil outline.

Everything random comes from the `numpy.random.Generator` that the caller passes, so a seed is an image.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # [N, 2], x to the right and y down, inside the unit circle
Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (220, 35, 35),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 45),
    "green": (40, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 75, 215),
    "purple": (125, 45, 170),
    "pink": (250, 130, 195),
    "brown": (125, 75, 35),
    "black": (22, 22, 22),
}
# Trained on like the others, with every shape, but never scored: they tie the colors together.
EXTRA_COLORS: dict[str, Color] = {
    "white": (250, 250, 250),
    "gray": (130, 130, 130),
    "teal": (10, 110, 110),
    "navy": (20, 25, 95),
    "maroon": (115, 15, 40),
    "lime": (170, 235, 40),
}
PALETTE = COLORS | EXTRA_COLORS
SIZES: dict[str, tuple[float, float]] = {"small": (0.18, 0.23), "large": (0.29, 0.38)}
POSITIONS: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "top left": (0.3, 0.3),
    "top right": (0.7, 0.3),
    "bottom left": (0.3, 0.7),
    "bottom right": (0.7, 0.7),
}
DOMAINS = ("original", "shifted")

_POSITION_JITTER = 0.05  # of the square's side
_MAX_ROTATION_DEGREES = 15.0
_MARGIN = 0.02  # of the square's side, kept free around the shape
_SUPERSAMPLE = 2


@dataclass(frozen=True)
class Scene:
    """What an image shows; each field is a key of SHAPES, PALETTE, SIZES or POSITIONS."""

    shape: str
    color: str
    size: str
    position: str


def _angles(count: int, start: float = -90.0, sweep: float = 360.0) -> NDArray[np.float64]:
    angles: NDArray[np.float64] = np.radians(start + sweep * np.arange(count) / count)
    return angles


def _on_circle(angles: NDArray[np.float64], radius: float | NDArray[np.float64] = 1.0) -> Points:
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _regular(corners: int, start: float) -> Callable[[], list[Points]]:
    return lambda: [_on_circle(_angles(corners, start))]


def _star() -> list[Points]:
    return [_on_circle(_angles(10), np.where(np.arange(10) % 2 == 0, 1.0, 0.42))]


def _ring() -> list[Points]:
    return [_on_circle(_angles(48)), _on_circle(_angles(48), 0.55)]


def _heart() -> list[Points]:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -y - 2.5], axis=1) / 16.0]


def _moon() -> list[Points]:
    outer = _on_circle(np.radians(np.linspace(50, 310, 40)))
    inner = _on_circle(np.radians(np.linspace(290, 70, 30)), 0.82) + np.array([0.36, 0.0])
    return [np.concatenate([outer, inner])]


def _polygon(*corners: tuple[float, float]) -> Callable[[], list[Points]]:
    return lambda: [np.array(corners, dtype=np.float64)]


_HALF_CROSS = ((-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32), (1.0, 0.32), (0.32, 0.32))
_CROSS = _HALF_CROSS + tuple((-x, -y) for x, y in _HALF_CROSS)
_ARROW = ((-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28))

SHAPES: dict[str, Callable[[], list[Points]]] = {
    "circle": _regular(48, 0.0),
    "square": _regular(4, 45.0),
    "triangle": _regular(3, -90.0),
    "diamond": _polygon((0, -1), (0.66, 0), (0, 1), (-0.66, 0)),
    "star": _star,
    "heart": _heart,
    "cross": _polygon(*_CROSS),
    "ring": _ring,
    "arrow": _polygon(*_ARROW),
    "moon": _moon,
}


def _place(scene: Scene, side: float, offset: tuple[float, float], rng: np.random.Generator) -> list[Points]:
    """The outlines of the scene's shape in pixels, all of it inside the square at `offset` of width `side`."""
    radius = rng.uniform(*SIZES[scene.size])
    room = radius + _MARGIN
    middle = np.clip(POSITIONS[scene.position] + rng.uniform(-1, 1, 2) * _POSITION_JITTER, room, 1 - room)
    turn = math.radians(rng.uniform(-_MAX_ROTATION_DEGREES, _MAX_ROTATION_DEGREES))
    stretch = rng.uniform(0.88, 1.0, 2)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return [(loop * stretch @ rotation * radius + middle) * side + offset for loop in SHAPES[scene.shape]()]


def _jittered(color: Color, rng: np.random.Generator) -> Color:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1.0
    saturation = float(np.clip(saturation * rng.uniform(0.9, 1.05), 0, 1))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, float(np.clip(value * rng.uniform(0.9, 1.08), 0, 1)))
    return round(red * 255), round(green * 255), round(blue * 255)


def _luminance(color: Color) -> float:
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255


def _ground(color: Color, rng: np.random.Generator) -> Color:
    """A muted color whose lightness differs from the shape's by enough to see the shape."""
    while True:
        lightness, saturation = rng.uniform(0.12, 0.95), rng.uniform(0.0, 0.12)
        red, green, blue = colorsys.hls_to_rgb(rng.uniform(), lightness, saturation)
        ground = round(red * 255), round(green * 255), round(blue * 255)
        if abs(_luminance(ground) - _luminance(color)) > 0.2:
            return ground


def _with_grain(image: Image.Image, amount: float, tilt: NDArray[np.float64], rng: np.random.Generator) -> Image.Image:
    """Adds noise of `amount` levels, and light that falls off by `tilt` levels across (x, y)."""
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * amount
    light = np.linspace(-tilt[0], tilt[0], width)[None, :] + np.linspace(-tilt[1], tilt[1], height)[:, None]
    lit = pixels + noise + light[..., None].astype(np.float32)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def _pairs(points: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _fill(canvas: ImageDraw.ImageDraw, loops: list[Points], color: Color | int) -> None:
    """Fills the outline; a second loop is a hole, joined to the first by a seam of no width."""
    closed = [np.concatenate([loop, loop[:1]]) for loop in loops]
    holes = [loop[::-1] for loop in closed[1:]]
    canvas.polygon(_pairs(np.concatenate([closed[0], *holes, closed[0][:1]])), fill=color)


def _stroke(
    canvas: ImageDraw.ImageDraw, loops: list[Points], color: Color, side: float, rng: np.random.Generator
) -> None:
    """Goes over each outline two or three times by an unsteady hand."""
    width = max(1, round(side * rng.uniform(0.024, 0.036)))
    for loop in loops:
        for _ in range(int(rng.integers(2, 4))):
            shift, wobble = rng.normal(0, 0.006, 2) * side, rng.normal(0, 0.003, loop.shape) * side
            points = loop + shift + wobble
            canvas.line(_pairs(np.concatenate([points, points[:2]])), fill=color, width=width, joint="curve")


def _filled(scene: Scene, loops: list[Points], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    color = _jittered(PALETTE[scene.color], rng)
    image = Image.new("RGB", size, _ground(color, rng))
    _fill(ImageDraw.Draw(image), loops, color)
    return _with_grain(image, rng.uniform(0, 8), rng.uniform(-16, 16, 2), rng)


def _penciled(scene: Scene, loops: list[Points], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    shade = rng.uniform(0.72, 0.86)
    paper = tuple(round(255 * shade * warmth) for warmth in (1.0, 0.97, 0.90))
    image = Image.new("RGB", size, (paper[0], paper[1], paper[2]))
    _stroke(ImageDraw.Draw(image), loops, _jittered(PALETTE[scene.color], rng), min(size), rng)
    return _with_grain(image, rng.uniform(10, 22), rng.uniform(-10, 10, 2), rng)


_PAINTERS = {"original": _filled, "shifted": _penciled}


def draw_with_mask(
    scene: Scene, domain: str, rng: np.random.Generator, size: tuple[int, int] = (64, 64)
) -> tuple[Image.Image, Image.Image]:
    """The image that `draw` makes, and an "L" image of the same size that is 255 inside the shape."""
    width, height = (side * _SUPERSAMPLE for side in size)
    side = min(width, height)
    loops = _place(scene, side, ((width - side) / 2, (height - side) / 2), rng)
    large = _PAINTERS[domain](scene, loops, (width, height), rng)
    mask = Image.new("L", size)
    _fill(ImageDraw.Draw(mask), [loop / _SUPERSAMPLE for loop in loops], 255)
    return large.resize(size, Image.Resampling.BICUBIC), mask


def draw(scene: Scene, domain: str, rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """An RGB image of `size` (width, height) in pixels; the scene fills its central square.

    `domain` is "original" (filled shape) or "shifted" (pencil outline on paper).
    """
    return draw_with_mask(scene, domain, rng, size)[0]
