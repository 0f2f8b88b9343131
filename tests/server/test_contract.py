"""The serving contract, spoken by plain tritonclient: any gRPC client may rely on exactly this."""

from __future__ import annotations

import io
import json
import struct
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritonclip_serve import TritonServer

CONTRACT = {
    "preprocess": ({"image": "BYTES"}, {"pixels": "UINT8"}),
    "image_encoder": ({"pixels": "UINT8"}, {"image_embedding": "FP32"}),
    "tokenizer": ({"text": "BYTES", "after": "FP32"}, {"input_ids": "INT32", "truncated": "BOOL"}),
    "text_encoder": ({"input_ids": "INT32"}, {"text_embedding": "FP32"}),
    "cached_text_encoder": ({"input_ids": "INT32"}, {"text_embedding": "FP32"}),
    "split_text": ({"texts": "BYTES"}, {"chunks": "UINT8", "lengths": "INT32", "owner": "INT32"}),
    "similarity": (
        {"image_embedding": "FP32", "text_embedding": "FP32"},
        {"logits": "FP32", "probabilities": "FP32", "image_features": "FP32", "text_features": "FP32"},
    ),
    "embed_image": ({"image": "BYTES"}, {"embedding": "FP32"}),
    "embed_text": ({"text": "BYTES"}, {"embedding": "FP32", "truncated": "BOOL"}),
    "clip": (
        {"image": "BYTES", "text": "BYTES"},
        {
            "logits": "FP32",
            "probabilities": "FP32",
            "image_features": "FP32",
            "text_features": "FP32",
            "truncated": "BOOL",
        },
    ),
}


def png(seed: int, size: tuple[int, int] = (90, 70)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def column(items: list[bytes]) -> np.ndarray:
    return np.array(items, dtype=object).reshape(-1, 1)


def infer(client: grpcclient.InferenceServerClient, model: str, outputs: list[str] | None = None, **arrays):
    inputs = []
    for name, array in arrays.items():
        tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    wanted = None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs]
    result = client.infer(model, inputs, outputs=wanted, client_timeout=60)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


@pytest.fixture(scope="module")
def triton(server: TritonServer):
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.mark.parametrize("model", CONTRACT)
def test_names_and_types(triton, model: str) -> None:
    metadata = triton.get_model_metadata(model)
    inputs, outputs = CONTRACT[model]
    assert {tensor.name: tensor.datatype for tensor in metadata.inputs} == inputs
    assert {tensor.name: tensor.datatype for tensor in metadata.outputs} == outputs


def test_the_spec_travels_in_every_ensemble(triton, server: TritonServer) -> None:
    manifest = json.loads((server.repository / "manifest.json").read_text())
    for model in ("embed_image", "embed_text", "clip"):
        parameters = triton.get_model_config(model).config.parameters
        assert json.loads(parameters["serving_spec"].string_value)["fingerprint"] == manifest["spec"]["fingerprint"]
        assert parameters["fingerprint"].string_value == manifest["spec"]["fingerprint"]


def test_images_and_texts_are_counted_independently(triton) -> None:
    images, texts = column([png(1), png(2), png(3)]), column([b"a red circle", b"a blue square"])
    result = infer(triton, "clip", image=images, text=texts)
    assert result["logits"].shape == result["probabilities"].shape == (3, 2)
    assert np.abs(result["probabilities"].sum(axis=1) - 1).max() < 1e-5
    for features, rows in (("image_features", 3), ("text_features", 2)):
        assert result[features].shape[0] == rows
        assert np.abs(np.linalg.norm(result[features], axis=1) - 1).max() < 1e-5


def test_a_subset_of_the_outputs_can_be_asked_for(triton) -> None:
    arrays = {"image": column([png(1)]), "text": column([b"a red circle"])}
    everything = infer(triton, "clip", **arrays)
    assert set(infer(triton, "clip", outputs=["probabilities"], **arrays)) == {"probabilities"}
    again = infer(triton, "clip", **arrays)
    assert all(np.allclose(everything[name], again[name], atol=1e-6) for name in everything)


def test_the_entry_points_agree_with_their_parts(triton) -> None:
    images, texts = column([png(5), png(6)]), column([b"a red circle", "ein Café".encode()])
    pixels = infer(triton, "preprocess", image=images)["pixels"]
    ids = infer(triton, "tokenizer", text=texts)["input_ids"]
    by_parts = (
        infer(triton, "image_encoder", pixels=pixels)["image_embedding"],
        infer(triton, "text_encoder", input_ids=ids)["text_embedding"],
    )
    whole = (
        infer(triton, "embed_image", image=images)["embedding"],
        infer(triton, "embed_text", text=texts)["embedding"],
    )
    scores = infer(triton, "clip", image=images, text=texts)
    assert pixels.dtype == np.uint8
    assert ids.shape == (2, 16)
    for parts, ensemble, features in zip(by_parts, whole, ("image_features", "text_features"), strict=True):
        assert np.abs(parts - ensemble).max() < 1e-5
        assert np.abs(parts - scores[features]).max() < 1e-5


def test_a_long_text_uses_a_longer_bucket_and_a_short_one_keeps_its_embedding(triton) -> None:
    short, long = b"a red circle", b"a very long text about circles " * 9
    assert infer(triton, "tokenizer", text=column([short, long]))["input_ids"].shape == (2, 77)
    alone = infer(triton, "embed_text", text=column([short]))["embedding"]
    together = infer(triton, "embed_text", text=column([short, long]))["embedding"]
    assert np.abs(alone[0] - together[0]).max() < 1e-5


def test_a_text_that_was_cut_is_reported(triton) -> None:
    # 75 words, a start and an end fill the context of 77.
    texts = column([b"dog " * 75, b"dog " * 76, b"dog"])
    for model in ("tokenizer", "embed_text"):
        assert infer(triton, model, text=texts)["truncated"].tolist() == [[False], [True], [False]]
    assert infer(triton, "clip", text=texts, image=column([png(1)]))["truncated"].tolist() == [[False], [True], [False]]


def huge_png_header() -> bytes:
    """A valid header of 50 000 x 50 000 pixels and almost no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(9, (300, 200)))).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


BAD_IMAGES = {
    "truncated JPEG": (truncated_jpeg(), "cut off"),
    "text named .jpg": (b"this is no image at all", "are no image"),
    "empty": (b"", "empty"),
    "huge header": (huge_png_header(), "50000"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_and_is_the_callers_fault(triton, kind: str) -> None:
    content, word = BAD_IMAGES[kind]
    for model in ("embed_image", "clip"):
        arrays = {"image": column([png(1), png(2), content])}
        if model == "clip":
            arrays["text"] = column([b"a red circle"])
        with pytest.raises(InferenceServerException) as caught:
            infer(triton, model, **arrays)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "image[2]: " in caught.value.message()
        assert word in caught.value.message()
        assert "Traceback" not in caught.value.message()


def test_a_bad_image_is_answered_while_the_texts_are_new(triton) -> None:
    """Triton before 26.02 loses such a request where both branches of an ensemble run side by side."""
    for number in range(30):
        texts = column([b"text %d that is in no cache" % number])
        with pytest.raises(InferenceServerException, match="are no image"):
            infer(triton, "clip", image=column([b"bad"]), text=texts)


def test_invalid_utf8_is_named(triton) -> None:
    texts = column([b"fine", b"\xff\xfe broken"])
    for model, arrays in (("embed_text", {}), ("clip", {"image": column([png(1)])})):
        with pytest.raises(InferenceServerException) as caught:
            infer(triton, model, text=texts, **arrays)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "text[1]: " in caught.value.message()


@pytest.mark.parametrize(
    ("model", "images", "texts"), [("embed_image", 0, None), ("embed_text", None, 0), ("clip", 0, 1), ("clip", 1, 0)]
)
def test_an_empty_list_is_refused(triton, model: str, images: int | None, texts: int | None) -> None:
    counts = {"image": (images, png(1)), "text": (texts, b"a red circle")}
    arrays = {name: column([item] * count) for name, (count, item) in counts.items() if count is not None}
    with pytest.raises(InferenceServerException, match="got 0|has 0 rows|0 images in one request") as caught:
        infer(triton, model, **arrays)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(("model", "tensor", "count"), [("embed_image", "image", 33), ("embed_text", "text", 65)])
def test_more_than_the_limit_is_refused_with_the_limit(triton, model: str, tensor: str, count: int) -> None:
    item = png(1) if tensor == "image" else b"a"
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, model, **{tensor: column([item] * count)})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert str(count - 1) in caught.value.message()


@pytest.mark.parametrize(("images", "texts", "option"), [(33, 1, "--max-image-batch"), (1, 65, "--max-text-batch")])
def test_clip_s_own_limits_are_refused_with_limit_and_option(triton, images: int, texts: int, option: str) -> None:
    arrays = {"image": column([png(1)] * images), "text": column([b"a"] * texts)}
    with pytest.raises(InferenceServerException, match=option) as caught:
        infer(triton, "clip", **arrays)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert f"1 to {max(images, texts) - 1} are allowed" in caught.value.message()


def test_bad_images_do_not_disturb_other_callers(triton) -> None:
    """Good and bad requests run at the same time, so that they meet in one dynamic batch."""
    expected = infer(triton, "embed_image", image=column([png(7)]))["embedding"]

    def ask(number: int) -> str:
        bad = number % 3 == 0
        try:
            items = [png(7), BAD_IMAGES["truncated JPEG"][0]] if bad else [png(7)]
            embedding = infer(triton, "embed_image", image=column(items))["embedding"]
        except InferenceServerException as error:
            return "refused" if bad and "image[1]: " in error.message() else f"failed: {error}"
        return "answered" if not bad and np.abs(embedding - expected).max() < 1e-5 else "wrong"

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(ask, range(60)))
    assert outcomes == ["refused" if number % 3 == 0 else "answered" for number in range(60)]


def metrics(server: TritonServer, name: str, model: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    values = [line.split()[-1] for line in lines if line.startswith(name + "{") and f'model="{model}"' in line]
    assert values, f"no metric {name} of {model}"
    return sum(float(value) for value in values)


@pytest.mark.parametrize(("length", "first"), [(16, 60_000), (16, -1), (200, 0)])
def test_ids_that_the_tower_does_not_know_fail_alone(triton, length: int, first: int) -> None:
    """Good ids are in flight beside them, so that those of one length meet in one batch."""
    good = [np.full((1, 16), 100 + index, np.int32) for index in range(48)]
    # All alike: Triton 2.51 would keep a failure of a cached model and answer its repeats with no outputs.
    bad = [np.full((1, length), first, np.int32)] * 48

    def ask(input_ids: np.ndarray) -> np.ndarray | str:
        try:
            return infer(triton, "text_encoder", input_ids=input_ids)["text_embedding"]
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, [ids for pair in zip(good, bad, strict=True) for ids in pair]))
    assert all(isinstance(answer, np.ndarray) for answer in answers[::2])
    assert all("INVALID_ARGUMENT input_ids" in str(answer) for answer in answers[1::2])


def test_requests_of_several_callers_run_as_one_batch(triton, server: TritonServer) -> None:
    def counts() -> np.ndarray:
        return np.array([metrics(server, f"nv_inference_{kind}", "image_encoder") for kind in ("count", "exec_count")])

    before = counts()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda seed: infer(triton, "embed_image", image=column([png(seed)])), range(160)))
    count, executions = counts() - before
    assert count == 160
    assert executions < count


def test_a_text_that_comes_again_is_answered_from_the_cache(triton, server: TritonServer) -> None:
    texts = column([b"a text that no other test sends, once"])
    first = infer(triton, "embed_text", text=texts)["embedding"]
    before = metrics(server, "nv_cache_num_hits_per_model", "cached_text_encoder")
    again = infer(triton, "embed_text", text=texts)["embedding"]
    assert np.array_equal(first, again)
    assert metrics(server, "nv_cache_num_hits_per_model", "cached_text_encoder") == before + 1


@pytest.mark.parametrize("first", ["embedding", "truncated"])
def test_the_cache_keeps_nobody_from_an_output_that_another_did_not_want(triton, first: str) -> None:
    """Triton caches the outputs that the first caller asked for, and hands them to all who come later."""
    texts = column([f"a text that only asks for {first}".encode(), b"dog " * 100])
    assert set(infer(triton, "embed_text", outputs=[first], text=texts)) == {first}
    result = infer(triton, "embed_text", outputs=["embedding", "truncated"], text=texts)
    assert result["embedding"].shape[0] == 2
    assert result["truncated"].tolist() == [[False], [True]]


def test_a_failure_is_not_answered_from_the_cache(triton) -> None:
    for _ in range(3):
        with pytest.raises(InferenceServerException, match=r"text\[0\]: "):
            infer(triton, "embed_text", text=column([b"\xff\xfe the same broken text"]))
