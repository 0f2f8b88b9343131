"""What an image may cost, told from its structure: what threads may decode, and what is refused before any decoding."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import bombs
from sample_images import IMAGES, encode, photo, turned

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import ImageError, preprocess, settings_from
from clip_settings import MAX_SIDE
from clip_weight import MAX_SCANS, weigh

PARAMETERS = {
    "image_height": "64",
    "image_width": "64",
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": "0,0,0",
    "max_pixels": "89478485",
    "max_bytes": str(1 << 25),
}
SETTINGS = settings_from(PARAMETERS)
# Of formats whose cost no look at the structure bounds, and one of a shape that grows when it is resized.
NOT_SMALL = {"gif", "gif animated", "bmp", "tiff", "tiff sixteen bits", "tiff cmyk", "tiff turned", "avif"}
NOT_SMALL |= {"wide", "tall", "wide rgba", "tall grey"}
# A linear look at 32 MiB, generously.
LOOK_S = 1.0


@pytest.mark.parametrize("kind", IMAGES)
def test_ordinary_images_are_decoded_by_threads(kind: str) -> None:
    assert weigh(IMAGES[kind](), SETTINGS).small == (kind not in NOT_SMALL), kind


def test_a_large_photo_is_small_work_and_a_large_progressive_one_is_not() -> None:
    large = Image.new("RGB", (4000, 3000), "grey")
    baseline, progressive = encode(large, "JPEG"), encode(large, "JPEG", progressive=True)
    assert weigh(baseline, SETTINGS).small
    assert not weigh(progressive, SETTINGS).small
    assert weigh(encode(large.resize((2000, 1500)), "JPEG", progressive=True), SETTINGS).small
    assert weigh(baseline, SETTINGS).seconds == pytest.approx(0.12, rel=0.5)


def test_what_follows_a_jpeg_does_not_count_as_scans() -> None:
    """A film behind a photo, as telephones store it, holds any bytes."""
    film = b"\xff\xda\x00\x08" * 500
    for progressive in (False, True):
        assert weigh(encode(photo(), "JPEG", progressive=progressive) + film, SETTINGS).small


@pytest.mark.parametrize("scans", [MAX_SCANS, MAX_SCANS + 1])
def test_scans_are_counted_to_the_limit(scans: int) -> None:
    made = bombs.jpeg_scans(640, scans)
    # It is a real file, whatever its scans.
    Image.open(io.BytesIO(made)).load()
    if scans <= MAX_SCANS:
        assert preprocess(made, SETTINGS).shape == (64, 64, 3)
    else:
        with pytest.raises(ImageError, match="more than 100 scans; at most 100 are allowed; save it again"):
            weigh(made, SETTINGS)


@pytest.mark.parametrize("made", [bombs.png(1, MAX_SIDE + 1, color=0), bombs.bmp_rle(MAX_SIDE + 1, 1)])
def test_sides_are_limited(made: bytes) -> None:
    with pytest.raises(ImageError, match=rf"sides of at most {MAX_SIDE} pixels are allowed; send a smaller"):
        preprocess(made, SETTINGS)


def test_a_webp_that_cannot_fit_its_memory_is_refused_from_its_header() -> None:
    with pytest.raises(ImageError, match="needs more than 500 MB .* raise --image-megabytes"):
        weigh(bombs.webp_lossless(bombs.SIDE), SETTINGS)
    assert weigh(bombs.webp_lossless(1000), SETTINGS).small


@pytest.mark.parametrize("kind", bombs.BOMBS)
def test_no_bomb_is_decoded_by_a_thread(kind: str) -> None:
    said = refusal(bombs.BOMBS[kind]())
    assert said.count("; ") >= 2 or not weigh(bombs.BOMBS[kind](), SETTINGS).small


def refusal(encoded: bytes) -> str:
    """The words with which it is refused, "" if it is not: what was given, what is allowed, what to do."""
    try:
        weigh(encoded, settings_from(PARAMETERS | {"max_bytes": str(1 << 26)}))
    except ImageError as error:
        return str(error)
    return ""


HEADER = encode(photo(), "JPEG", progressive=True)
FILLED = {
    "markers": HEADER[:-2] + b"\xff" * (32 << 20),
    "scans": HEADER[:-2] + b"\xff\xda\x00\x02" * (8 << 20),
    "tables": HEADER[:-2] + b"\xff\xda" * 101 + b"\xff\xc4\x00\x02" * (8 << 20),
    "chunks": bombs.png_chunks(2_000_000),
    "riff": bombs.webp_lossless(100) + b"abcd\x00\x00\x00\x00" * (4 << 20),
}


@pytest.mark.parametrize("kind", FILLED)
def test_looking_takes_linear_time(kind: str) -> None:
    begun = time.thread_time()
    refusal(FILLED[kind])
    assert time.thread_time() - begun < LOOK_S


@pytest.mark.parametrize("kind", ["jpeg progressive", "exif 6", "png", "png turned", "webp", "webp turned"])
def test_files_that_end_anywhere_can_be_weighed(kind: str) -> None:
    whole = IMAGES[kind]()
    lengths = [*range(1, 700), *range(700, len(whole), 997)]
    assert all(weigh(whole[:length], SETTINGS).seconds > 0 for length in lengths)
    assert not weigh(whole[:20], SETTINGS).small


def test_exif_is_small_unless_its_directory_copies_much() -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert weigh(turned(6, image_format), SETTINGS).small
    for made in (bombs.jpeg_exif(), bombs.png_exif(), bombs.webp_exif()):
        assert not weigh(made, SETTINGS).small
