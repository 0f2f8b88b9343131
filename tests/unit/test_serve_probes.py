"""The image and the text with which a server proves that it embeds."""

import io
import struct

from PIL import Image

from tritonclip_serve.readiness import read_probes


def payloads(repository):
    return {(probe.model, probe.tensor): probe.payload for probe in read_probes(repository)}


def test_the_repositorys_own_warm_up_items_are_asked_for(tmp_path):
    for path, item in (("preprocess/warmup/image", b"encoded"), ("tokenizer/warmup/text", "ein Schaf ☃".encode())):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(struct.pack("<I", len(item)) + item)
    assert payloads(tmp_path) == {
        ("embed_image", "image"): b"encoded",
        ("embed_text", "text"): "ein Schaf ☃".encode(),
    }


def test_without_them_a_real_image_and_a_text_are_asked_for(tmp_path):
    (tmp_path / "tokenizer" / "warmup").mkdir(parents=True)
    (tmp_path / "tokenizer" / "warmup" / "text").write_bytes(b"")
    found = payloads(tmp_path)
    with Image.open(io.BytesIO(found["embed_image", "image"])) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (128, 128, 128)
    assert found["embed_text", "text"] == b"a photo"
