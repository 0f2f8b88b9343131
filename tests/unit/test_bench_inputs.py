"""What a load test sends: images, texts and requests, and the check of the answers."""

import argparse
import contextlib
import io
import itertools
import math
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from kserve_server import Server, serving
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.load.loadrun import LOCUSTFILE
from tritonclip_bench.server.endpoint import connect
from tritonclip_bench.traffic.captions import CAPTIONS, STRIDE, captions, describe_texts, read_texts, text_stream
from tritonclip_bench.traffic.classifiers import _chosen
from tritonclip_bench.traffic.image_sets import IMAGE_SETS
from tritonclip_bench.traffic.images import JPEG_QUALITY, Images, _places, draw_images, load_images, read_images
from tritonclip_bench.traffic.scenarios import CALLS, SCENARIOS, parse_mix, scenario_name, traffic
from tritonclip_bench.traffic.workload import Workload

DIM = 8


@pytest.fixture
def workload():
    return Workload(
        Images((b"one", b"three", b""), "a test"),
        iter(["a cat", "ein Mädchen", "猫", "a dog", "a bird"]),
        batch_size=2,
        labels=3,
        embedding_dim=DIM,
    )


def answer(**tensors):
    """A response as Triton sends it."""
    response = service_pb2.ModelInferResponse()
    for name, array in tensors.items():
        response.outputs.add(name=name, datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(array.astype("<f4").tobytes())
    return response


def unit_vectors(rows):
    vectors = np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_captions_do_not_repeat():
    texts = list(itertools.islice(captions(seed=5), 50_000))
    assert len(set(texts)) == len(texts)
    assert math.gcd(STRIDE, CAPTIONS) == 1


def test_equal_seeds_make_equal_captions_and_others_do_not():
    first, again, other = (list(itertools.islice(captions(seed), 100)) for seed in (1, 1, 10**6))
    assert first == again
    assert not set(first) & set(other)


def test_texts_of_a_file_are_made_unique_unless_repetition_is_wanted():
    unique = list(itertools.islice(text_stream(["a cat", "a dog"], seed=3, repeat=False), 6))
    assert len(set(unique)) == 6
    assert unique[0].startswith("a cat")
    repeated = list(itertools.islice(text_stream(["a cat", "a dog"], seed=3, repeat=True), 6))
    assert repeated == ["a cat", "a dog"] * 3


def test_repeated_captions_are_few():
    assert len(set(itertools.islice(text_stream(None, seed=3, repeat=True), 1000))) == 64


def test_texts_come_from_the_lines_of_a_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_texts(path) == ["a cat", "a dog"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\xfa"])
def test_a_file_without_texts_is_refused(tmp_path, content):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchError, match=r"texts\.txt .*give a UTF-8 file"):
        read_texts(path)


def test_drawn_images_have_their_declared_sizes_and_weigh_what_photos_weigh():
    images = draw_images(sizes=((640, 480), (1024, 768)), per_size=1)
    opened = [Image.open(io.BytesIO(encoded)) for encoded in images.encoded]
    assert [(image.format, image.size) for image in opened] == [("JPEG", (640, 480)), ("JPEG", (1024, 768))]
    for image, encoded in zip(opened, images.encoded, strict=True):
        bits_per_pixel = len(encoded) * 8 / (image.width * image.height)
        assert 0.8 < bits_per_pixel < 4
        assert np.asarray(image.convert("L")).std() > 20


def test_drawn_images_depend_on_the_seed_only():
    first, again, other = (draw_images(((64, 48),), per_size=2, seed=seed).encoded for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_a_folder_gives_its_images_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert load_images(tmp_path).encoded == (b"a.PNG", b"b.jpg")
    assert str(tmp_path) not in str(load_images(tmp_path).describe())


def test_a_folder_that_is_none_and_one_without_images_are_refused(tmp_path):
    with pytest.raises(BenchError, match="is not a folder"):
        read_images(tmp_path / "missing")
    with pytest.raises(BenchError, match="holds no image"):
        read_images(tmp_path)


def test_requests_are_laid_out_as_the_reference_client_reads_them(workload):
    call = workload.call("clip")
    assert [(t.name, t.datatype, list(t.shape)) for t in call.request.inputs] == [
        ("image", "BYTES", [2, 1]),
        ("text", "BYTES", [3, 1]),
    ]
    images, texts = (list(deserialize_bytes_tensor(raw)) for raw in call.request.raw_input_contents)
    assert images == [b"one", b"three"]
    assert [text.decode() for text in texts] == ["a cat", "ein Mädchen", "猫"]


def test_images_are_sent_in_turn_and_a_call_counts_its_images_or_texts(workload):
    sent = [list(deserialize_bytes_tensor(workload.call("embed_image").request.raw_input_contents[0])) for _ in "ab"]
    assert sent == [[b"one", b"three"], [b"", b"one"]]
    assert [workload.call(model).items for model in ("embed_image", "embed_text", "clip")] == [2, 2, 2]


def test_every_scenario_calls_entry_points_that_exist(workload):
    for scenario in SCENARIOS.values():
        for model, weight in scenario.weights.items():
            assert weight > 0
            assert model in CALLS


def test_good_answers_pass(workload):
    image, clip = workload.call("embed_image"), workload.call("clip")
    workload.check(image, answer(embedding=unit_vectors(2)))
    probabilities = np.full((2, 3), 1 / 3)
    workload.check(
        clip, answer(probabilities=probabilities, image_features=unit_vectors(2), text_features=unit_vectors(3))
    )


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        (unit_vectors(1), r"shape \[1, 8\], not \[2, 8\]"),
        (unit_vectors(2)[:, :4], r"shape \[2, 4\]"),
        (unit_vectors(2) * 1.01, "not of length 1"),
        (np.zeros((2, DIM)), "not of length 1"),
        (np.full((2, DIM), np.nan), "not finite"),
    ],
)
def test_wrong_embeddings_are_failures(workload, embedding, reason):
    with pytest.raises(WrongAnswerError, match=reason):
        workload.check(workload.call("embed_image"), answer(embedding=embedding))


def test_an_answer_without_the_output_or_with_wrong_probabilities_is_a_failure(workload):
    with pytest.raises(WrongAnswerError, match="no embedding in the answer"):
        workload.check(workload.call("embed_image"), answer(other=unit_vectors(2)))
    short = answer(embedding=unit_vectors(2))
    short.raw_output_contents[0] = short.raw_output_contents[0][:-2]
    with pytest.raises(WrongAnswerError, match="do not have their shapes"):
        workload.check(workload.call("embed_image"), short)
    features = {"image_features": unit_vectors(2), "text_features": unit_vectors(3)}
    with pytest.raises(WrongAnswerError, match="outside 0 to 1"):
        workload.check(workload.call("clip"), answer(probabilities=np.full((2, 3), 1.5), **features))


def test_no_proxy_stands_between_the_load_and_its_own_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as server:
        channel, stub = connect(server.address)
        with channel:
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20).live


def test_plain_locust_does_not_run_against_a_server_whose_spec_cannot_be_read():
    with serving(Server(spec={"name": "demo"})) as server:
        command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "-t", "1s", "--host", server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "error: the server's serving_spec cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.calls == []


def test_the_default_images_are_those_of_earlier_results():
    photos = IMAGE_SETS["photos"]
    assert _places(photos) == [(640, 480), (1024, 768)] * 16
    assert photos.qualities == (JPEG_QUALITY,)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_set_has_its_sizes_in_their_shares_and_both_orientations(name):
    declared, places = IMAGE_SETS[name], _places(IMAGE_SETS[name])
    assert len(places) == declared.count
    total = sum(size.weight for size in declared.sizes)
    weights = Counter()
    for size in declared.sizes:
        weights[size.width, size.height] += size.weight
    for size, weight in weights.items():
        found = sum(sorted(place, reverse=True) == list(size) for place in places)
        assert found == pytest.approx(weight / total * declared.count, abs=2)
    upright = sum(height > width for width, height in places)
    assert (upright > 0) == (declared.turned > 0)


def test_an_image_of_a_phone_is_drawn_fast_and_weighs_what_photos_weigh():
    begin_s = time.process_time()
    (encoded,) = draw_images(((4032, 3024),), per_size=1).encoded
    assert time.process_time() - begin_s < 2
    image = Image.open(io.BytesIO(encoded))
    assert image.size == (4032, 3024)
    assert 0.8 < len(encoded) * 8 / (4032 * 3024) < 4
    # No tile of noise is where another one is.
    assert np.asarray(image.convert("L")).std() > 20
    told = Images((encoded, b"no image"), "a test").describe()
    assert told["sizes"] == {"4032x3024": 1}
    assert told["mean_megapixels"] == pytest.approx(12.192768)
    assert (told["unreadable"], told["bytes"]["max"]) == (1, len(encoded))


@pytest.mark.parametrize(("name", "words"), [("captions", (10, 20)), ("short", (1, 4)), ("long", (30, 200))])
def test_texts_have_their_lengths_and_do_not_repeat(name, words):
    texts = list(itertools.islice(text_stream(None, seed=9, repeat=False, lengths=name), 20_000))
    assert len(set(texts)) == len(texts)
    lengths = {len(text.split()) for text in texts}
    assert words[0] <= min(lengths)
    assert max(lengths) <= words[1]
    told = describe_texts(iter(texts), name)
    assert told["words"]["min"] in lengths
    assert told["source"] == name


def test_mixed_texts_are_of_all_lengths():
    texts = list(itertools.islice(text_stream(None, seed=9, repeat=False, lengths="mixed"), 10_000))
    assert len(set(texts)) == len(texts)
    assert sum(len(text.split()) <= 4 for text in texts) == 5000
    assert sum(len(text.split()) > 30 for text in texts) == 1000


def test_scenarios_have_the_names_of_their_calls_too():
    assert [scenario_name(name) for name in ("embed_image", "embed_text", "clip")] == ["image", "text", "clip"]


def test_a_mix_has_weights_of_its_own():
    options = argparse.Namespace(scenario="mixed", mix="embed_image=7,embed_text=2,clip=1,classify=1")
    assert traffic(options).weights == {"embed_image": 7, "embed_text": 2, "clip": 1, "classify": 1}
    assert traffic(options).item == "images and texts"
    assert traffic(argparse.Namespace(scenario="mixed", mix="clip=1,classify=2")).item == "images"
    assert traffic(argparse.Namespace(scenario="mixed")).weights == SCENARIOS["mixed"].weights


@pytest.mark.parametrize("text", ["", "clip", "clip=0", "clip=-1", "clip=1.5", "video=1", "clip=1,clip=2", "clip=9999"])
def test_what_is_no_mix(text):
    with pytest.raises(argparse.ArgumentTypeError, match="give each of embed_image, embed_text, clip, classify once"):
        parse_mix(text)


@pytest.mark.parametrize(
    ("shape", "probabilities", "reason"),
    [
        ((2, 3), np.full((2, 3), 0.5), None),
        ((2, 3), np.full((2, 3), 1.5), "outside 0 to 1"),
        ((1, 3), np.full((1, 3), 0.5), r"class_indices have the shape \[1, 3\] for 2 images"),
        ((2, 3), np.full((2, 2), 0.5), "class_indices have the shape"),
        ((2, 0), np.zeros((2, 0)), "class_indices have the shape"),
    ],
)
def test_answers_of_a_classifier_are_checked(shape, probabilities, reason):
    made = Workload(
        Images((b"one",), "a test"), iter([]), batch_size=2, labels=1, embedding_dim=DIM, classifier="classify_pets"
    )
    call = made.call("classify")
    response = answer(probabilities=probabilities)
    response.outputs.add(name="class_indices", datatype="INT32", shape=shape)
    response.raw_output_contents.append(b"")
    assert (call.model, call.items) == ("classify_pets", 2)
    with contextlib.nullcontext() if reason is None else pytest.raises(WrongAnswerError, match=reason):
        made.check(call, response)


@pytest.mark.parametrize(
    ("served", "name", "message"),
    [
        ([], None, "the server has no classifier; build one"),
        (["pets", "shapes"], None, "2 classifiers: pets, shapes; choose one with --classifier NAME"),
        (["pets"], "shapes", "--classifier shapes: the server has no such classifier; it has pets"),
    ],
)
def test_the_classifier_has_to_be_clear(served, name, message):
    with pytest.raises(BenchError, match=message):
        _chosen(served, name)
