"""The client against the real server: what comes back, whichever way it was asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asking import ask_asyncio, both_clients
from tritonclip_client import TEMPLATES, ClipClient, InvalidInputError
from tritonclip_client.main import main
from tritonclip_client.templates import fill
from tritonclip_serve import TritonServer

TEXTS = ["a red circle", "a blue square", "two green triangles", "a large yellow star", "ein Käfer", ""]
# Batches of different sizes add up the same numbers in a different order.
CLOSE = {"rtol": 0, "atol": 2e-5}


def image(seed: int) -> np.ndarray:
    """uint8 [80, 96, 3], unlike every other seed's: one disc on a plain ground."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:80, :96]
    center, radius = random.integers(25, 55, 2), random.integers(8, 25)
    inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
    ground, disc = random.integers(0, 256, (2, 3), np.uint8)
    return np.where(inside[:, :, None], disc, ground)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = [encoded(image(seed)) for seed in range(75)]


@pytest.fixture(scope="module")
def client(server: TritonServer):
    with ClipClient(server.grpc_address, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def embeddings(client: ClipClient) -> np.ndarray:
    """The embeddings of IMAGES, one request an image."""
    return np.concatenate([client.embed_images([data]) for data in IMAGES])


def test_the_server_is_ready(client: ClipClient):
    client.check_ready()
    assert client.ready() is True


def test_the_spec_is_the_repository_s(client: ClipClient, server: TritonServer):
    manifest = json.loads((server.repository / "manifest.json").read_text())

    assert client.spec.fingerprint in json.dumps(manifest)
    assert client.spec.embedding_dim == client.embed_texts(["a"]).shape[1]


def test_embeddings_are_unit_vectors_and_tell_images_apart(embeddings):
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2) + np.eye(len(embeddings))
    # Otherwise a wrong order would go unseen by the other tests.
    assert distances.min() > 10 * CLOSE["atol"]


@pytest.mark.parametrize("batch_size", [None, 3, 1000])
def test_a_list_longer_than_the_server_s_limit_keeps_its_order(client, embeddings, batch_size):
    result = client.embed_images(IMAGES, batch_size=batch_size)

    np.testing.assert_allclose(result, embeddings, **CLOSE)


def test_asyncio_gives_the_same(server, embeddings):
    result = ask_asyncio(server.grpc_address, lambda client: client.embed_images(iter(IMAGES)), timeout_s=60)

    np.testing.assert_allclose(result, embeddings, **CLOSE)


def test_texts_beyond_the_limit_keep_their_order(client):
    texts = [f"{text} number {number}" for number in range(12) for text in TEXTS]
    alone = np.concatenate([client.embed_texts([text]) for text in texts])

    np.testing.assert_allclose(client.embed_texts(texts), alone, **CLOSE)


def test_every_kind_of_image_gives_the_same(client, embeddings, tmp_path: Path):
    file = tmp_path / "image.png"
    file.write_bytes(IMAGES[0])

    result = client.embed_images([IMAGES[0], file, str(file), Image.open(file), image(0)])

    np.testing.assert_allclose(result, np.repeat(embeddings[:1], 5, axis=0), **CLOSE)


def test_a_rotated_pil_image_is_what_its_file_is(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image(3), exif=exif)

    from_file, from_pil = client.embed_images([data, Image.open(io.BytesIO(data))])

    np.testing.assert_allclose(from_file, from_pil, **CLOSE)


@both_clients
@pytest.mark.parametrize(("images", "texts"), [(5, 3), (75, 6), (2, 130)], ids=["one request", "images", "texts"])
def test_similarity_is_what_numpy_says(ask, server, images, texts):
    names = [f"{TEXTS[number % 4]} {number}" for number in range(texts)]
    result = ask(server.grpc_address, lambda client: client.similarity(IMAGES[:images], names), timeout_s=60)
    with ClipClient(server.grpc_address) as client:
        scoring, text_features = client.spec.scoring, client.embed_texts(names)

    logits = scoring.logit_scale * result.image_features @ result.text_features.T + scoring.logit_bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert scoring.kind == "softmax"
    np.testing.assert_allclose(result.text_features, text_features, **CLOSE)
    np.testing.assert_allclose(result.logits, logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        result.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=0, atol=1e-4
    )


def test_cut_up_similarity_is_the_same_as_one_request(client):
    whole = client.similarity(IMAGES[:4], TEXTS)
    parts = client.similarity(IMAGES, TEXTS)

    np.testing.assert_allclose(parts.logits[:4], whole.logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(parts.image_features[:4], whole.image_features, **CLOSE)


def test_a_template_set_is_the_mean_of_its_prompts(client, embeddings):
    labels = TEXTS[:4]
    answers = client.classify(IMAGES[:5], labels, templates="simple")

    prompts = [fill(template, label) for label in labels for template in TEMPLATES["simple"]]
    means = client.embed_texts(prompts).reshape(4, 7, -1).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = client.spec.scoring.logit_scale * embeddings[:5] @ means.T
    for answer, row in zip(answers, logits, strict=True):
        assert {score.label: score.logit for score in answer.scores} == pytest.approx(
            dict(zip(labels, row, strict=True)), abs=1e-2
        )


def test_an_unknown_template_and_empty_lists_are_refused(client):
    with pytest.raises(InvalidInputError, match="unknown template 'fotos'; .*plain, photo, simple"):
        client.classify(IMAGES[:1], ["cat"], templates="fotos")
    with pytest.raises(InvalidInputError, match="no images given"):
        client.embed_images([])
    with pytest.raises(InvalidInputError, match="no texts given"):
        client.embed_texts([])


def test_the_commands_answer(server, tmp_path: Path, capsys, embeddings):
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, data in zip(files, IMAGES, strict=False):
        file.write_bytes(data)
    output = tmp_path / "out.npy"
    common = [*map(str, files), "--address", server.grpc_address, "--json"]

    assert main(["classify", *common, "--labels", "a red circle", "--labels", "a blue square"]) == 0
    assert [answer["image"] for answer in json.loads(capsys.readouterr().out)] == [str(file) for file in files]
    assert main(["embed", *common, "--text", "a red circle", "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [3, embeddings.shape[1]]
    np.testing.assert_allclose(np.load(output)[:2], embeddings[:2], **CLOSE)
    assert main(["similarity", *common, "--text", "a red circle"]) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"] == [[1.0], [1.0]]
