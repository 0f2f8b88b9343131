"""The towers on a device: in every runtime, with the answers of float32, and nothing left to the CPU behind its back.

The same tests run on the CPU everywhere and on a GPU where there is one.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from devices import DEVICES, PROVIDERS, SLOW_DEVICES
from tiny_clip import write_tiny_checkpoint
from tritonclip_bench.gpu import graph
from tritonclip_bench.gpu.device import open_device
from tritonclip_bench.gpu.runtimes import open_runtime
from tritonclip_bench.gpu.subject import Subject, open_subject
from tritonclip_client.main import main
from tritonclip_export import pipeline
from tritonclip_export.parity.comparison import MINIMUM_COSINE, OnnxTower

# isort: split
import clip_onnx
from clip_jobs import Job

FLOAT16 = 0.9995
TOWERS = ("image_encoder", "text_encoder")


@pytest.fixture(scope="module", params=["demo", pytest.param("ViT-B-32", marks=pytest.mark.slow)])
def subject(request: pytest.FixtureRequest, demo: Path) -> Iterator[Subject]:
    """Both towers in float16, as graphs and in PyTorch, and what float32 PyTorch makes of the probes."""
    source = str(demo / "checkpoint") if request.param == "demo" else request.param
    with open_subject(None, source, "float16") as subject:
        yield subject


def embed(path: Path, batch: np.ndarray) -> np.ndarray:
    """Through the encoder that the server runs."""
    answers: queue.Queue[np.ndarray | Exception] = queue.Queue()
    encoder = clip_onnx.Encoder(path)
    encoder.submit(Job(batch, answers.put))
    embeddings = answers.get(timeout=120)
    encoder.close()
    assert isinstance(embeddings, np.ndarray), embeddings
    return embeddings


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum(axis=1).min())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-copies", "pytorch"])
def test_float16_gives_the_embeddings_of_float32(subject: Subject, runtime: str, device: str) -> None:
    assert {case.tower for case in subject.cases} == {"image", "text"}
    for case in subject.cases:
        tower = open_runtime(runtime, subject, case, open_device(device), pytest.fail)
        for count in (1, len(case.inputs)):
            placed = tower.place(case.inputs[:count])
            placed.run()
            assert cosine(placed.result(), case.expected[:count]) >= FLOAT16, case.name


def by_hand(config: Path) -> dict[str, int]:
    """Operations of a CLIP of plain transformers: a layer takes 24 L W² for its matrices, 4 L² W for its attention."""
    cfg = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
    dim, vision, text = cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2

    def layers(tower: dict[str, int], length: int) -> int:
        width = tower["width"]
        return tower["layers"] * (24 * length * width**2 + 4 * length**2 * width) + 2 * width * dim

    into_patches = 2 * patches * 3 * vision["patch_size"] ** 2 * vision["width"]
    return {"image": into_patches + layers(vision, patches + 1), "text": layers(text, text["context_length"])}


def test_operations_are_those_of_the_registry(subject: Subject, demo: Path) -> None:
    counted = {case.tower: case.flops for case in subject.cases}  # of texts the longest, which comes last
    # The demo is not in it.
    expected = subject.registry or by_hand(demo / "checkpoint" / "open_clip_config.json")
    assert counted == pytest.approx(expected, rel=1e-3)


def test_onnxruntimes_cuda_build_exports_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a package of another name."""

    def version(package: str) -> str:
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(pipeline, "version", version)
    tools = pipeline.installed_tools()
    assert tools["onnxruntime-gpu"] == "1.2.3"
    assert "onnxruntime" not in tools


@pytest.mark.parametrize("device", DEVICES)
def test_no_floating_point_number_is_computed_elsewhere(subject: Subject, device: str) -> None:
    for case in subject.cases:
        nodes = graph.profile(case.onnx, case.inputs[:2], PROVIDERS[device], optimized=True)
        assert graph.strays(nodes, PROVIDERS[device]) == [], case.name
        assert graph.strays(nodes, "none") != [], "there are such numbers"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 3, clip_onnx.GPU_BATCH + 5])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_served_encoder_gives_the_embeddings_of_the_cpu(
    tower: str, count: int, device: str, demo_repository: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """In float32, whose bound no TensorFloat-32 passes; more rows than a GPU takes at once too."""
    path = demo_repository / tower / "1" / "model.onnx"
    generator = np.random.default_rng(0)
    if tower == "image_encoder":
        batch = generator.integers(0, 256, (count, 48, 48, 3), np.uint8)
    else:
        batch = np.zeros((count, 16), np.int32)
        batch[:, 0], batch[:, 8] = 49406, 49407
        batch[:, 1:8] = generator.integers(1, 49406, (count, 7))
    monkeypatch.setenv(clip_onnx.DEVICE, device)
    assert cosine(embed(path, batch), OnnxTower(path)(batch)) >= MINIMUM_COSINE["float32"]["image"]
    assert f"{path} runs on {PROVIDERS[device]}\n" in capfd.readouterr().err


@pytest.mark.parametrize("device", SLOW_DEVICES)
def test_the_benchmark_measures_every_runtime(device: str, tmp_path: Path, capsys) -> None:
    result = tmp_path / "result.json"
    source = write_tiny_checkpoint(tmp_path / "tiny")
    command = ["bench", "gpu", str(source), "--device", device, "--batches", "1,3", "--rounds", "2"]
    assert main([*command, "--seconds", "0.01", "--json", str(result)]) == 0
    record = json.loads(result.read_text(encoding="utf-8"))
    assert record["complete"]
    assert record["device"]["kind"] == device
    measured = [one for one in record["series"] if one["status"] == "measured"]
    assert {one["runtime"] for one in measured} == {"pytorch", "onnxruntime", "onnxruntime-copies"}
    assert {one["case"] for one in measured} == set(record["towers"])
    for one in measured:
        assert [point["batch"] for point in one["points"]] == [1, 3], one
        flops = record["towers"][one["case"]]["flops"]
        peak = record["peaks"]["flops"]["bfloat16" if device == "cuda" else "float32"]["median"]
        for point in one["points"]:
            assert point["cosine_min"] >= FLOAT16
            assert point["mfu"] == pytest.approx(flops * point["items_per_s"]["median"] / peak)
    best = {roof["case"]: roof for roof in record["roofline"] if roof["batch"] == 3}
    assert set(best) == set(record["towers"])
    printed = capsys.readouterr().out
    assert all(f"{roof['attainable']:.1f}" in printed for roof in best.values())
