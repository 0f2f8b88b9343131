"""What is said about the images: the scored labels, the held-out pairs, and the training captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.drawing import COLORS, EXTRA_COLORS, POSITIONS, SHAPES, SIZES, Scene

SPLITS = ("seen", "held-out")
_SHAPE_NAMES, _COLOR_NAMES = tuple(SHAPES), tuple(COLORS)
_HELD_OUT_STEPS = (0, 3)  # the pair (shape i, color i + step) is never shown in training

ALL_PAIRS = tuple((shape, color) for shape in _SHAPE_NAMES for color in _COLOR_NAMES)
HELD_OUT_PAIRS = tuple(
    (shape, _COLOR_NAMES[(index + step) % len(_COLOR_NAMES)])
    for index, shape in enumerate(_SHAPE_NAMES)
    for step in _HELD_OUT_STEPS
)
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)
TRAINED_PAIRS = SEEN_PAIRS + tuple((shape, color) for shape in _SHAPE_NAMES for color in EXTRA_COLORS)
PAIRS = {"seen": SEEN_PAIRS, "held-out": HELD_OUT_PAIRS, "all": ALL_PAIRS}

_OPENINGS = ("", "", "", "a picture of ", "a photo of ", "a drawing of ", "an image of ")
_PLACES = ("in the {}", "at the {}")


@dataclass(frozen=True)
class Caption:
    """A sentence and what it claims; a field that it does not mention is None."""

    text: str
    shape: str | None = None
    color: str | None = None
    size: str | None = None
    position: str | None = None


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def label(shape: str, color: str) -> str:
    """The label that is scored for a pair, as it is given to the text tower."""
    return with_article(f"{color} {shape}")


LABELS = tuple(label(shape, color) for shape, color in ALL_PAIRS)


def caption_of(scene: Scene, rng: np.random.Generator, whole: bool = False) -> Caption:
    """A sentence that names some of the scene's attributes, or at least shape and color if `whole`."""
    keep_shape, keep_color, keep_size, keep_position = rng.random(4) < (0.75, 0.75, 0.3, 0.3)
    shape = scene.shape if keep_shape or whole else None
    color = scene.color if keep_color or whole else None
    size = scene.size if keep_size else None
    position = scene.position if keep_position else None
    if not (shape or color or size or position):
        return caption_of(scene, rng, whole)
    thing = with_article(" ".join(word for word in (size, color, shape or "thing") if word))
    place = " " + _PLACES[int(rng.integers(len(_PLACES)))].format(position) if position else ""
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    return Caption(opening + thing + place, shape, color, size, position)


def random_scene(pairs: tuple[tuple[str, str], ...], rng: np.random.Generator) -> Scene:
    """A scene with one of the pairs; size and position are drawn freely."""
    shape, color = pairs[int(rng.integers(len(pairs)))]
    sizes, positions = tuple(SIZES), tuple(POSITIONS)
    return Scene(shape, color, sizes[int(rng.integers(len(sizes)))], positions[int(rng.integers(len(positions)))])
