"""`tritonclip embed`, `classify` and `similarity`, against a real gRPC server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import grpc
import numpy as np
import pytest

from kserve_server import SCALE, Server, fail_first, serving, softmax, vectors
from tritonclip_client.main import GROUP, main

IMAGES = [b"image %d" % number for number in range(6)]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{number}.jpg" for number in range(len(IMAGES))]
    for file, data in zip(files, IMAGES, strict=True):
        file.write_bytes(data)
    return [str(file) for file in files]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "out.npy"


def run(server: Server, *words: object) -> int:
    return main([*map(str, words), "--address", server.address])


def test_embed_writes_images_then_texts(images, output, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("ein Käfer\n\nzwei Käfer\n", encoding="utf-8-sig")
    with serving() as server:
        status = run(server, "embed", *images, "--text", "a cat", "--texts-file", texts, "--output", output)

    assert status == 0
    expected = vectors([*IMAGES, b"a cat", "ein Käfer".encode(), "zwei Käfer".encode()])
    np.testing.assert_array_equal(np.load(output), expected)
    assert [file.name for file in output.parent.iterdir()] == ["out.npy"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["0", "image", images[0]]
    assert lines[-2].split() == ["8", "text", "zwei", "Käfer"]
    assert lines[-1] == f"{output}: float32 [9, 16]"


def test_embed_tells_the_rows_in_json(images, output, capsys):
    with serving() as server:
        assert run(server, "embed", images[0], "--text", "cat", "--output", output, "--json") == 0

    assert json.loads(capsys.readouterr().out) == {
        "output": str(output),
        "shape": [2, 16],
        "dtype": "float32",
        "rows": [{"row": 0, "kind": "image", "item": images[0]}, {"row": 1, "kind": "text", "item": "cat"}],
    }


def test_a_failed_embed_leaves_the_old_file(images, output):
    output.write_bytes(b"old")
    with serving(Server(on_infer=fail_first(1, grpc.StatusCode.INTERNAL))) as server:
        assert run(server, "embed", *images, "--output", output) == 1

    assert output.read_bytes() == b"old"
    assert [file.name for file in output.parent.iterdir()] == ["out.npy"]


def test_classify_prints_a_table(images, capsys):
    with serving() as server:
        status = run(server, "classify", *images[:2], "--labels", "cat", "--labels", "dog", "--top-k", 2)

    probabilities = softmax(SCALE * vectors(IMAGES[:2]) @ vectors([b"cat", b"dog"]).T)
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    best = ["cat", "dog"][int(probabilities[0].argmax())]
    assert lines[0].split() == ["image", "label", "probability"]
    assert lines[2].split() == [images[0], best, f"{probabilities[0].max():.4f}"]
    assert len(lines) == 6


def test_classify_prints_json_and_reads_labels_from_a_file(images, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    words = ["--labels-file", labels, "--templates", "the {}", "--templates", "a {}", "--json"]
    with serving() as server:
        assert run(server, "classify", *images, *words) == 0

    answers = json.loads(capsys.readouterr().out)
    assert [answer["image"] for answer in answers] == images
    assert all(len(answer["scores"]) == 1 for answer in answers)
    assert set(answers[0]["scores"][0]) == {"label", "probability", "logit"}


def test_similarity_prints_a_column_a_text(images, capsys):
    with serving() as server:
        assert run(server, "similarity", *images[:2], "--text", "a cat", "--text", "a dog") == 0

    probabilities = softmax(SCALE * vectors(IMAGES[:2]) @ vectors([b"a cat", b"a dog"]).T)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "a", "cat", "a", "dog"]
    assert lines[3].split() == [images[1], *(f"{value:.4f}" for value in probabilities[1])]


def test_similarity_prints_json(images, capsys):
    with serving() as server:
        assert run(server, "similarity", images[0], "--text", "a cat", "--text", "a dog", "--json") == 0

    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["texts"]) == ([images[0]], ["a cat", "a dog"])
    np.testing.assert_allclose(document["logits"], SCALE * vectors(IMAGES[:1]) @ vectors([b"a cat", b"a dog"]).T)
    assert sum(document["probabilities"][0]) == pytest.approx(1)


BAD = {
    "nothing to embed": (["embed", "--output", "{out}"], "nothing to embed"),
    "missing image": (["embed", "gone.jpg", "--output", "{out}"], r"image[0] (gone.jpg): no such file"),
    "output is no .npy": (["embed", "{image}", "--output", "{out}.txt"], "give the name of a .npy file"),
    "output has no folder": (["embed", "{image}", "--output", "nowhere/out.npy"], "cannot write into nowhere"),
    "no labels": (["classify", "{image}"], "no labels given"),
    "unknown template": (
        ["classify", "{image}", "--labels", "cat", "--templates", "fotos"],
        "unknown template 'fotos'; give one of the names plain, photo, simple",
    ),
    "label twice": (["classify", "{image}", "--labels", "cat", "--labels", "cat"], "give every label once"),
    "no texts": (["similarity", "{image}"], "no texts given"),
    "texts not UTF-8": (["similarity", "{image}", "--texts-file", "{latin}"], "line 2 is not UTF-8"),
    "no texts file": (["similarity", "{image}", "--texts-file", "gone.txt"], "gone.txt cannot be read"),
    "empty texts file": (["similarity", "{image}", "--texts-file", "{empty}"], "holds no text"),
    "http address": (["similarity", "{image}", "--text", "a", "--address", "http://x:1"], "host:port"),
}


@pytest.mark.parametrize(("words", "problem"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_status_2(words, problem, images, output, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("gut\nKäfer".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    names = {
        "out": output,
        "image": images[0],
        "latin": tmp_path / "latin.txt",
        "empty": tmp_path / "empty.txt",
    }

    status = main([word.format(**names) for word in words])

    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert problem in captured.err
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
@pytest.mark.parametrize("command", [["classify", "a.jpg", "--labels", "cat"], ["serve", "repository"]])
def test_a_time_that_cannot_work_is_refused(command, value, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, f"--timeout={value}"])

    assert caught.value.code == 2
    assert "--timeout" in (message := capsys.readouterr().err)
    assert f"'{value}'" in message
    assert "give seconds, more than 0" in message


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x"])
def test_a_number_of_labels_that_cannot_work_is_refused(value, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["classify", "a.jpg", "--labels", "cat", f"--top-k={value}"])

    assert caught.value.code == 2
    assert f"argument --top-k: '{value}' given; give a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "exit_status"),
    [(grpc.StatusCode.UNAVAILABLE, 3), (grpc.StatusCode.DEADLINE_EXCEEDED, 4), (grpc.StatusCode.INTERNAL, 1)],
)
def test_the_exit_status_tells_what_failed(status, exit_status, images, capsys):
    with serving(Server(on_infer=fail_first(10**6, status))) as server:
        assert run(server, "classify", images[0], "--labels", "cat", "--timeout", 1) == exit_status

    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("point", entry_points(group=GROUP), ids=lambda point: point.name)
def test_every_command_introduces_itself_in_one_style(point):
    line = point.load().HELP

    assert line[0].islower()
    assert not line.endswith(".")


def test_a_reader_that_has_seen_enough_is_no_error(images):
    read, write = os.pipe()
    os.close(read)
    with serving() as server, os.fdopen(write) as closed:
        words = ["similarity", images[0], "--text", "cat", "--address", server.address]
        line = [sys.executable, "-m", "tritonclip_client.main", *words]
        # Buffered, as a user's Python is: the pipe is then found closed when the command is over.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            line, env=environment, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )

    assert (done.returncode, done.stderr) == (0, "")
