"""The parsers that are fuzzed: how each is called, what it may raise, and what it is given first."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_chaos.hostile.images import formats, originals
from tritonclip_chaos.hostile.texts import BROKEN, FAMILIES, hostile_texts

Parse = Callable[[bytes], object]
Prepared = tuple[Parse, tuple[type[Exception], ...]]
# Texts are compared with what ftfy itself makes of them up to this length: it takes long for damage in many layers.
_COMPARED = 300
_CONTEXT = 77


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        prepare: imports it, and returns how to call it with bytes and which errors are its documented ones; given a
            folder for files.
        seeds: what is tried first, by a seed.
        modules: whose coverage guides.
        longest: bytes of an input.
    """

    prepare: Callable[[Path], Prepared]
    seeds: Callable[[int], list[bytes]]
    modules: tuple[str, ...]
    longest: int = 4096


class WrongResultError(Exception):
    """A parser took an input, and made something of it that it must not."""


def _image(_: Path) -> Prepared:
    _served("preprocess")
    from clip_settings import ImageError, ImageSettings  # type: ignore[import-not-found]
    from clip_weight import weigh  # type: ignore[import-not-found]

    settings = ImageSettings(64, 64, "shortest", "bicubic", (0, 0, 0), 89_478_485, 1 << 25)
    return lambda data: weigh(data, settings), (ImageError,)


def _images(seed: int) -> list[bytes]:
    return [original for name in formats() for original in originals(name, seed)]


def _clean(_: Path) -> Prepared:
    _served("tokenizer")
    import clip_mend  # type: ignore[import-not-found]
    import clip_text  # type: ignore[import-not-found]

    cleanings = list(clip_text.CLEAN.values())

    def parse(data: bytes) -> None:
        text = clip_text.decode(0, data[1:], 65_536)
        with clip_text.place(0):
            if not isinstance(cleanings[(data or b"\0")[0] % len(cleanings)](text), str):
                raise WrongResultError("what is cleaned is no text")

    assert clip_mend.MOST_ROUNDS
    return parse, (clip_text.TextError,)


def _mend(_: Path) -> Prepared:
    _served("tokenizer")
    import clip_mend
    import ftfy

    def parse(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        fixed = clip_mend.fix_text(text)
        if len(text) <= _COMPARED and fixed != ftfy.fix_text(text):
            raise WrongResultError(f"ftfy makes something else of {text!a}")

    return parse, (clip_mend.TangledError,)


def _split(folder: Path) -> Prepared:
    _served("split_text")
    import clip_text
    from clip_split import Splitter  # type: ignore[import-not-found]

    file = folder / "tokenizer.json"
    _write_bytes_tokenizer(file)
    settings = clip_text.TextSettings(_CONTEXT, (_CONTEXT,), 0, 0, 0, "whitespace", 65_536, "hf")
    splitter = Splitter(file, settings)

    def parse(data: bytes) -> None:
        chunks = splitter.split_one(0, data)
        if "".join("".join(chunk.decode() for chunk in chunks).split()) != "".join(data.decode().split()):
            raise WrongResultError("the chunks are not the text")

    return parse, (clip_text.TextError,)


def _texts(seed: int) -> list[bytes]:
    mixed = [text for _, text in hostile_texts(seed, 3 * len(FAMILIES), largest=2000)]
    broken = [text for text in BROKEN.values() if len(text) < 100]
    return [b"\x00A dog barks. A cat sleeps.", *mixed, *broken]


def _spec(_: Path) -> Prepared:
    from tritonclip_client.errors import ProtocolError
    from tritonclip_client.spec import ServingSpec

    return lambda data: ServingSpec.from_json(data.decode("utf-8", "replace")), (ProtocolError,)


def _specs(_: int) -> list[bytes]:
    image = {"height": 64, "width": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    text = {"context_length": 77, "vocab_size": 49408, "buckets": [16, 77], "pad_id": 0, "sot_id": 1, "eot_id": 2}
    spec = {
        "name": "demo",
        "architecture": "ViT-B-32",
        "embedding_dim": 16,
        "image": {**image, "resize_mode": "shortest", "fill_color": [0, 0, 0]},
        "text": {**text, "clean": "lower", "pooling": "argmax"},
        "scoring": {"kind": "softmax", "logit_scale": 10.0, "logit_bias": 0.0},
        "precision": "float32",
        "runtime": "onnxruntime-python",
        "fingerprint": "0" * 64,
    }
    return [json.dumps(spec).encode(), *_broken_json(spec, "image")]


def _manifest(folder: Path) -> Prepared:
    from tritonclip_export.errors import RepositoryError
    from tritonclip_export.repository.manifest import MANIFEST, read_manifest

    def parse(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data)
        read_manifest(folder)

    return parse, (RepositoryError,)


def _manifests(_: int) -> list[bytes]:
    engine = {"file": "a.plan", "gpu": "g", "compute_capability": "9.0", "tensorrt": "10.3.0"}
    manifest = {
        "format": 1,
        "spec": {"fingerprint": "0" * 64},
        "files": {"tokenizer/1/model.py": "a" * 64},
        "settings": {},
        "engines": {"image_encoder": [{**engine, "options": {"version_compatible": True}}]},
        "classifiers": {},
    }
    return [json.dumps(manifest).encode(), *_broken_json(manifest, "files")]


def _broken_json(document: dict[str, Any], name: str) -> list[bytes]:
    """What a reader of JSON stumbles over: other types, numbers beyond all bounds, depth."""
    values: tuple[object, ...] = (None, 5, [], "x", {"a": 5}, [[]], 1e308, True)
    others = [json.dumps({**document, name: value}).encode() for value in values]
    return [*others, b"[" * 3000, b'{"a":' * 3000, b"9" * 4000, b"1e999", b"NaN", b"\xff", b'"\\ud800"', b"{}"]


def _pieces(_: Path) -> Prepared:
    import atheris
    from tritonclient.grpc import InferResult, service_pb2

    from tritonclip_client import wire
    from tritonclip_client.errors import ProtocolError
    from tritonclip_client.items import Item

    def parse(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        response = service_pb2.ModelInferResponse(model_name="split_text")
        for name, (kind, content) in _answer(given).items():
            shape = [len(content) // (1 if kind == "UINT8" else 4)]
            # One time in four, something is not as it should be.
            if not given.ConsumeIntInRange(0, 3):
                kind = given.PickValueInList(_KINDS)
                shape = given.ConsumeIntList(given.ConsumeIntInRange(0, 3), 1)
                content = given.ConsumeBytes(given.ConsumeIntInRange(0, 40))
            response.outputs.add(name=name, datatype=kind, shape=shape)
            response.raw_output_contents.append(content)
        items = [Item(index, b"text", None) for index in range(_TEXTS)]
        found = wire.pieces(InferResult(response), items)
        if {piece.index for piece in found} != set(range(_TEXTS)):
            raise WrongResultError("a text without pieces")

    return parse, (ProtocolError,)


_TEXTS = 3
_KINDS = ["UINT8", "INT32", "FP32", "BYTES", "BOOL", "INT64", "FP16", "BF16", "NONE"]


def _answer(given: Any) -> dict[str, tuple[str, bytes]]:
    """What `split_text` might answer: every text has one to three pieces, mostly."""
    owners = [text for text in range(_TEXTS) for _ in range(given.ConsumeIntInRange(0, 3) or 1)]
    lengths = [given.ConsumeIntInRange(0, 8) for _ in owners]
    if not given.ConsumeIntInRange(0, 7):
        owners, lengths = owners[::-1], [given.ConsumeInt(4) for _ in owners]
    packed = {name: struct.pack(f"<{len(values)}i", *values) for name, values in (("l", lengths), ("o", owners))}
    content = bytes(sum(length for length in lengths if 0 < length < 100))
    return {"chunks": ("UINT8", content), "lengths": ("INT32", packed["l"]), "owner": ("INT32", packed["o"])}


def _served(model: str) -> None:
    """Let the modules of a served model be imported."""
    from tritonclip_export.repository.templates import templates

    sys.path.insert(0, str(templates() / model / "1"))


def _write_bytes_tokenizer(file: Path) -> None:
    """A tokenizer for which every byte is a token."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(file))


TARGETS: dict[str, Target] = {
    "image": Target(_image, _images, ("clip_weight", "clip_settings"), 1 << 16),
    "clean": Target(_clean, _texts, ("clip_text", "clip_mend")),
    "mend": Target(_mend, _texts, ("clip_mend",)),
    "split": Target(_split, _texts, ("clip_split", "clip_text")),
    "spec": Target(_spec, _specs, ("tritonclip_client.spec",)),
    "manifest": Target(
        _manifest, _manifests, ("tritonclip_export.repository.manifest", "tritonclip_export.repository.manifest_format")
    ),
    "pieces": Target(_pieces, lambda _: [bytes(64), b"\xff" * 64], ("tritonclip_client.wire",)),
}
