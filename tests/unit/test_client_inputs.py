"""What may be given as images, texts, labels and templates, and how it travels."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tritonclip_client.errors import InvalidImageError, InvalidInputError, InvalidTextError
from tritonclip_client.images import check_images, encode_images
from tritonclip_client.items import Item, chunked
from tritonclip_client.options import Options, Tls, is_loopback
from tritonclip_client.templates import TEMPLATES, fill, resolve_templates
from tritonclip_client.texts import check_labels, encode_texts

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)


def travelling(images) -> list[bytes]:
    return [item.data for item in encode_images(check_images(images))]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encoded(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def test_encoded_bytes_and_files_go_as_they_are(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"not even an image")

    data = travelling([b"raw", bytearray(b"raw"), memoryview(b"raw"), file, str(file)])

    assert data == [b"raw"] * 3 + [b"not even an image"] * 2


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[:, :, 0], PIXELS[::-1, ::2]], ids=["rgb", "grey", "strided"])
def test_arrays_travel_without_loss(pixels):
    (data,) = travelling([pixels])

    assert opened(data).format == "PNG"
    np.testing.assert_array_equal(np.asarray(opened(data)), pixels)


def test_a_batch_of_arrays_is_a_list_of_images():
    batch = np.stack([PIXELS, 255 - PIXELS])

    assert travelling(batch) == travelling(list(batch))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pil_modes_that_png_holds_travel_without_loss(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode).convert(mode)

    (data,) = travelling([image])

    assert opened(data).mode == mode
    np.testing.assert_array_equal(np.asarray(opened(data)), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "F", "I"])
def test_other_pil_modes_travel_as_rgb(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode in "FI" else "RGB").convert(mode)

    (data,) = travelling([image])

    np.testing.assert_array_equal(np.asarray(opened(data)), np.asarray(image.convert("RGB")))


def test_a_palette_keeps_its_transparency():
    image = Image.fromarray(PIXELS).convert("P")
    image.info["transparency"] = 3

    assert opened(travelling([image])[0]).info["transparency"] == 3


def test_an_orientation_travels_with_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif))

    assert opened(travelling([image])[0]).getexif()[0x0112] == 6


def test_a_truncated_pil_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    broken = Image.open(io.BytesIO(whole[: len(whole) // 2]))

    with pytest.raises(InvalidImageError, match=r"^image\[1\]: cannot be read \(.*truncated"):
        travelling([Image.fromarray(PIXELS), broken])


BAD_IMAGES = {
    "missing": (lambda folder: folder / "none.jpg", "no such file"),
    "directory": (lambda folder: folder, "is a directory"),
    "empty file": (lambda folder: folder / "empty.jpg", "empty file"),
    "name with a zero byte": (lambda folder: "a\0b", "cannot be read"),
    "empty bytes": (lambda folder: b"", "empty bytes"),
    "float array": (lambda folder: np.zeros((4, 4, 3), np.float32), r"float32 array \[4, 4, 3\] given"),
    "channels first": (lambda folder: np.zeros((3, 4, 4), np.uint8), r"uint8 array \[3, 4, 4\] given"),
    "empty array": (lambda folder: np.zeros((0, 4, 3), np.uint8), r"uint8 array \[0, 4, 3\] given"),
    "number": (lambda folder: 7, "int given; give a path"),
    "nothing": (lambda folder: None, "NoneType given; give a path"),
}


@pytest.mark.parametrize(("make", "problem"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_is_refused_with_its_index_before_anything_is_read(tmp_path, make, problem):
    (tmp_path / "empty.jpg").touch()
    images = [b"fine", make(tmp_path), b"fine"]

    with pytest.raises(InvalidImageError, match=rf"^image\[1\].*{problem}") as caught:
        check_images(images)
    assert caught.value.index == 1
    with pytest.raises(InvalidImageError, match=rf"^image\[1\].*{problem}"):
        list(encode_images(iter(images)))


@pytest.mark.parametrize("images", ["a.jpg", Path("a.jpg"), b"jpeg", PIXELS, Image.fromarray(PIXELS), 7, None])
def test_one_image_is_no_list(images):
    with pytest.raises(InvalidInputError, match="given as images; give a list"):
        check_images(images)


@pytest.mark.parametrize("images", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_image_at_all_is_refused(images):
    with pytest.raises(InvalidInputError, match="no images given"):
        travelling(images)


def test_an_iterator_is_not_consumed_by_the_check():
    images = iter([b"a", b"b"])

    assert check_images(images) is images
    assert [item.index for item in encode_images(images)] == [0, 1]


def test_texts_travel_as_utf8():
    assert [item.data for item in encode_texts(["ä", "日本".encode(), ""])] == ["ä".encode(), "日本".encode(), b""]


@pytest.mark.parametrize("text", [b"\xff\xfe", "\ud800", 7, None])
def test_a_bad_text_is_refused_with_its_index(text):
    with pytest.raises(InvalidTextError, match=r"^text\[2\]") as caught:
        encode_texts(["fine", "fine", text])
    assert caught.value.index == 2


@pytest.mark.parametrize("texts", ["a cat", b"a cat", 7])
def test_one_text_is_no_list(texts):
    with pytest.raises(InvalidInputError, match="given as texts; give a list"):
        encode_texts(texts)
    with pytest.raises(InvalidInputError, match="given as labels; give a list"):
        check_labels(texts)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([], "no labels given"),
        (["cat", ""], r"labels\[1\] is ''"),
        (["cat", "dog", "cat"], r"labels\[2\] is 'cat' again"),
        (["cat", 7], r"labels\[1\] is 7"),
        (["cat", "\ud800"], r"text\[1\].*not valid UTF-8"),
    ],
)
def test_labels_are_texts_and_each_once(labels, problem):
    with pytest.raises(InvalidInputError, match=problem):
        check_labels(labels)


def test_named_templates():
    assert resolve_templates("plain") == ("{}",)
    assert resolve_templates("photo") == ("a photo of a {}.",)
    assert len(resolve_templates("simple")) == 7
    assert all("{}" in template for templates in TEMPLATES.values() for template in templates)


def test_own_templates():
    assert resolve_templates("a {} drawing") == ("a {} drawing",)
    assert resolve_templates(["a {}", "the {}"]) == ("a {}", "the {}")


@pytest.mark.parametrize("templates", ["fotos", "", ["a {}", "a thing"], [], [7]])
def test_unknown_templates_are_refused_and_the_names_listed(templates):
    with pytest.raises(InvalidInputError, match="plain, photo, simple"):
        resolve_templates(templates)


@pytest.mark.parametrize("templates", [["photo"], ["a {}", "photo"]])
def test_a_name_among_several_templates_is_refused_as_that(templates):
    with pytest.raises(
        InvalidInputError, match="the name 'photo' given as one of several templates; a name stands alone"
    ):
        resolve_templates(templates)


def test_braces_in_a_label_are_only_braces():
    assert fill("a {} {0}", "{x} {") == "a {x} { {0}"


@given(st.lists(st.binary(max_size=9)), st.integers(1, 5), st.integers(1, 20))
def test_chunks_keep_order_and_limits(data, max_items, max_bytes):
    items = [Item(index, value) for index, value in enumerate(data)]

    chunks = list(chunked(iter(items), max_items, max_bytes))

    assert [item for chunk in chunks for item in chunk.items] == items
    for chunk in chunks:
        assert 1 <= len(chunk.items) <= max_items
        assert len(chunk.items) == 1 or sum(len(item.data) for item in chunk.items) <= max_bytes


def test_chunks_are_as_few_as_they_can_be():
    sizes = [len(chunk.items) for chunk in chunked((Item(i, b"x") for i in range(10)), 4, 100)]

    assert sizes == [4, 4, 2]


def test_chunks_are_read_lazily():
    numbers = itertools.count()

    next(chunked((Item(i, b"x") for i in numbers), 4, 100))

    assert next(numbers) == 5


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"address": "http://localhost:8000"}, "host:port"),
        ({"address": ""}, "host:port"),
        ({"address": "localhost"}, "'localhost' given, which names no port; .*host:port, for example 127.0.0.1:8001"),
        ({"address": "gpu-box.example:"}, "names no port"),
        ({"address": "localhost:grpc"}, "names no port"),
        ({"address": ":8001"}, "names no port"),
        ({"address": "10.0.0.7:80010"}, "names no port"),
        ({"address": "fe80::1"}, "names no port"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, problem):
    with pytest.raises(InvalidInputError, match=problem):
        Options(**options)


def test_tls_files_must_exist(tmp_path):
    with pytest.raises(InvalidInputError, match="tls root_certificates: there is no file"):
        Options(tls=Tls(root_certificates=tmp_path / "none.pem")).connection()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8001", "127.8.0.1:1", "localhost:8001", "[::1]:8001", "dns:///localhost:1"]
)
def test_an_address_of_this_machine(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["10.0.0.7:8001", "gpu-box.example:8001", "dns:///triton:8001"])
def test_an_address_of_another_machine(address):
    assert not is_loopback(address)


@pytest.mark.parametrize("address", ["box:1", "[fe80::1]:8001", "dns:///triton:8001", "unix:/run/triton.sock"])
def test_an_address_that_grpc_takes(address):
    assert Options(address).connection()["url"] == address
