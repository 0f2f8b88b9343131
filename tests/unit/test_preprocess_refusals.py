"""Images that cannot be served: each gets one clear refusal, before it costs memory or hides as grey."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_images import IMAGES, encode, photo

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import ImageError, ImageSettings, preprocess, preprocess_batch, settings_from

WARM_UP = Path(__file__).parents[2] / "model_repository" / "preprocess" / "warmup" / "image"

PARAMETERS = {
    "image_height": "64",
    "image_width": "64",
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": "0,0,0",
    "max_pixels": "1000000",
    "max_bytes": "500000",
    "exif": "transpose",
}
SETTINGS = settings_from(PARAMETERS)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


REFUSED = {
    "empty": (b"", r"^an empty image; JPEG, .* are allowed; send the bytes"),
    "text": (b"this is no image at all", r"begin with b'this is no i' and are no image; .* are allowed; send"),
    "too many bytes": (bytes(500_001), r"500001 bytes; at most 500000 are allowed; send a smaller image"),
    "too many pixels": (png_header(50_000, 50_000), r"PNG of 50000 x 50000 = 2500000000 pixels; at most 1000000 are"),
    "another format": (encode(photo(), "PPM"), r"are no image; JPEG, PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"are no image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_was_given_what_is_allowed_and_what_to_do(case):
    encoded, message = REFUSED[case]
    with pytest.raises(ImageError, match=message):
        preprocess(encoded, SETTINGS)


def test_a_bomb_is_refused_from_its_header():
    tracemalloc.start()
    with pytest.raises(ImageError):
        preprocess(png_header(50_000, 50_000), SETTINGS)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


CUT = (
    "jpeg 4:4:4",
    "jpeg progressive",
    "jpeg grey",
    "jpeg cmyk",
    "png",
    "png sixteen bits",
    "webp",
    "gif",
    "bmp",
    "tiff",
)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_off_is_refused(kind, share):
    whole = IMAGES[kind]()
    with pytest.raises(ImageError, match="damaged|are no image"):
        preprocess(whole[: int(len(whole) * share)], ImageSettings(**vars(SETTINGS) | {"max_bytes": 1 << 25}))


@pytest.mark.parametrize("kind", ["jpeg 4:4:4", "jpeg grey", "jpeg cmyk"])
def test_a_cut_jpeg_that_claims_to_end_is_refused_not_padded_with_grey(kind):
    whole = IMAGES[kind]()
    claimed = whole[: len(whole) // 2] + b"\xff\xd9"
    Image.open(io.BytesIO(claimed)).load()
    with pytest.raises(ImageError, match="cut off or damaged"):
        preprocess(claimed, SETTINGS)


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm():
    whole = IMAGES["jpeg 4:4:4"]()
    assert np.array_equal(preprocess(whole + b"trailer" * 20, SETTINGS), preprocess(whole, SETTINGS))


def served_or_refused(encoded: bytes) -> str:
    """Either "served" or the words of the refusal; any other error is the test's failure."""
    try:
        assert preprocess(encoded, SETTINGS).shape == (64, 64, 3)
    except ImageError as error:
        return str(error)
    return "served"


@pytest.mark.parametrize("kind", ["jpeg 4:4:4", "png", "webp", "gif"])
def test_damage_anywhere_is_a_refusal_or_pixels_and_nothing_else(kind):
    whole = bytearray(IMAGES[kind]())
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 8):
            damaged[position] = rng.integers(0, 256)
        outcome = served_or_refused(bytes(damaged))
        assert outcome == "served" or outcome.count("; ") >= 2


# Pillow warns, and reads what it can.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_says_nothing_about_the_pixels():
    plain = encode(photo(), "JPEG")
    broken = encode(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(preprocess(broken, SETTINGS), preprocess(plain, SETTINGS))


def test_the_index_of_a_bad_image_is_named():
    good = encode(photo(), "JPEG")
    with pytest.raises(ImageError, match=r"^image\[2\]: an empty image; "):
        preprocess_batch([good, good, b"", good], SETTINGS)
    assert preprocess_batch([good, good], SETTINGS).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("name", "value"), [("resize_mode", "fit"), ("interpolation", "lanczos"), ("exif", "maybe"), ("fill_color", "1,2")]
)
def test_parameters_that_no_transform_has_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}|unpack"):
        settings_from(PARAMETERS | {name: value})


def test_threads_and_images_of_many_sizes_do_not_mix():
    files = [
        encode(photo((60 + 37 * n, 90 + 11 * n), seed=n).convert("RGB" if n % 3 else "L"), "JPEG") for n in range(12)
    ]
    alone = [preprocess(encoded, SETTINGS).copy() for encoded in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda encoded: preprocess(encoded, SETTINGS), files * 20))
    assert all(np.array_equal(pixels, alone[n % 12]) for n, pixels in enumerate(together))


def test_the_checked_in_warm_up_is_a_real_image():
    content = WARM_UP.read_bytes()
    assert struct.unpack("<I", content[:4]) == (len(content) - 4,)
    assert preprocess(content[4:], SETTINGS).std() > 30
