"""The sizes of the images that a load test sends, as data: named sets for kinds of traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size in a set.

    Attributes:
        width, height: pixels of the wide orientation.
        weight: its share of the set, relative to the others.
    """

    width: int
    height: int
    weight: int = 1


@dataclass(frozen=True)
class ImageSet:
    """Drawn JPEGs, 4:2:0, whose number does not grow with their size.

    Attributes:
        help: for people.
        sizes: and how often each comes.
        count: images; they are sent again and again.
        qualities: of JPEG, in turn.
        turned: every so many images one is upright; 0: none.
    """

    help: str
    sizes: tuple[Size, ...]
    count: int
    qualities: tuple[int, ...] = (75, 85, 90, 95)
    turned: int = 3


THUMBNAILS = (Size(160, 120, 2), Size(200, 150, 2), Size(224, 224, 3), Size(256, 256, 3), Size(320, 240, 2))
WEB = (
    Size(640, 480, 3),
    Size(800, 600, 3),
    Size(1080, 1080, 2),
    Size(1200, 800, 3),
    Size(1600, 1200),
    Size(1920, 1080),
)
PHONE = (Size(1920, 1080), Size(2048, 1536), Size(3264, 2448), Size(4000, 3000), Size(4032, 3024, 2))

IMAGE_SETS: Mapping[str, ImageSet] = {
    "photos": ImageSet("640x480 and 1024x768, quality 90", (Size(640, 480), Size(1024, 768)), 32, (90,), 0),
    "thumbnails": ImageSet("previews of 160 to 320 pixels", THUMBNAILS, 48),
    "web": ImageSet("images of web pages, 0.3 to 2 megapixels", WEB, 26),
    "phone": ImageSet("uploads from phones, 2 to 12 megapixels", PHONE, 12, (85, 90, 95)),
    "mixed": ImageSet(
        "four of ten are previews, five of web pages, one from a phone",
        (
            *(Size(size.width, size.height, 39 * size.weight) for size in THUMBNAILS),
            *(Size(size.width, size.height, 45 * size.weight) for size in WEB),
            *(Size(size.width, size.height, 20 * size.weight) for size in PHONE),
        ),
        50,
    ),
}
DEFAULT_SET = "photos"
