"""What is done around a TensorRT build. The engine is played by ONNX Runtime: no engine was built for these tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_tensorrt import A100, H200, FakeToolkit
from tritonclip_client.main import main
from tritonclip_export.engine.boundary import check_major
from tritonclip_export.engine.build import EngineRequest, build, plan
from tritonclip_export.engine.profiles import Range, Ranges
from tritonclip_export.errors import EngineError, ExportError, ParityError, RepositoryError
from tritonclip_export.repository import manifest as manifests
from tritonclip_export.repository.configs import read_config

IMAGE_ENGINE = "image_encoder/1/model.plan.cc90"
TEXT_ENGINE = "text_encoder/1/model.plan.cc90"


def snapshot(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def half(plan_file: Path) -> None:
    content = plan_file.read_bytes()
    plan_file.write_bytes(content[: len(content) // 2])


def test_a_build_is_recorded_with_all_that_it_depends_on(repository: Path) -> None:
    request = EngineRequest(repository, workspace_gib=4, version_compatible=True)
    written = build(request, FakeToolkit())
    (image,), (text,) = written["engines"]["image_encoder"], written["engines"]["text_encoder"]
    assert (image["file"], text["file"]) == (IMAGE_ENGINE, TEXT_ENGINE)
    facts = {key: image[key] for key in ("tensorrt", "cuda", "gpu", "compute_capability")}
    assert facts == {"tensorrt": "10.16.1.11", "cuda": "13.2", "gpu": "NVIDIA H200", "compute_capability": "9.0"}
    assert image["onnx"] == {"image_encoder/1/model.onnx": written["files"]["image_encoder/1/model.onnx"]}
    assert image["options"] == {"workspace_gib": 4, "version_compatible": True}
    assert image["profile"]["max"] == [32, 48, 48, 3]
    assert image["build_seconds"] >= 0
    assert all(one["cosine_min"] > 0.99999 for one in (*image["parity"], *text["parity"]))
    # The manifest holds the hashes, and nothing but the two engines came in.
    manifests.verify(repository)
    assert not any(path.name.startswith(".") for path in repository.parent.iterdir())


def test_without_a_runtime_the_configs_stay(repository: Path) -> None:
    before = snapshot(repository)
    build(EngineRequest(repository), FakeToolkit())
    after = snapshot(repository)
    assert {name for name in after if after[name] != before.get(name)} == {IMAGE_ENGINE, TEXT_ENGINE, "manifest.json"}


def test_the_probes_reach_every_shape_that_is_served(repository: Path) -> None:
    toolkit = FakeToolkit()
    build(EngineRequest(repository), toolkit)
    images = {shape[0] for shape in toolkit.shapes if len(shape) == 4}
    texts = {shape for shape in toolkit.shapes if len(shape) == 2}
    assert images == {1, 3, 32}
    assert texts == {(size, length) for size in (1, 3, 64) for length in (16, 32, 77)}


def test_own_probes_come_beside_the_built_in_ones(repository: Path, demo: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\nthree\n", encoding="utf-8")
    alone, together = FakeToolkit(), FakeToolkit()
    build(EngineRequest(repository), alone)
    build(EngineRequest(repository, probe_images=demo / "images", probe_texts=texts), together)
    more = [together.shapes.count(shape) - alone.shapes.count(shape) for shape in ((1, 48, 48, 3), (1, 16))]
    own = [path for path in (demo / "images").iterdir() if path.suffix in (".jpg", ".png")]
    assert more == [len(own), 3]


def test_profiles_come_from_the_spec_and_the_limits(repository: Path) -> None:
    toolkit = FakeToolkit()
    build(EngineRequest(repository), toolkit)
    image, text = (request.profile for request in toolkit.asked)
    assert image.shapes() == ((1, 48, 48, 3), (32, 48, 48, 3), (32, 48, 48, 3))
    assert text.shapes() == ((1, 16), (64, 32), (64, 77))
    toolkit = FakeToolkit()
    build(EngineRequest(repository, Ranges(Range(1, 8, 64), text_length=Range(2, 77, 77))), toolkit)
    image, text = (request.profile for request in toolkit.asked)
    assert (image.opt[0], image.max[0]) == (8, 64)
    assert text.shapes() == ((1, 2), (64, 77), (64, 77))


def test_the_timing_cache_lies_beside_the_repository(repository: Path, tmp_path: Path) -> None:
    toolkit = FakeToolkit()
    build(EngineRequest(repository), toolkit)
    build(EngineRequest(repository, timing_cache=tmp_path / "mine"), toolkit)
    kept = repository.parent / "repository.timing-cache-cc9.0-10.16.1.11"
    assert [request.timing_cache for request in toolkit.asked] == [kept] * 2 + [tmp_path / "mine"] * 2


def test_engines_of_several_gpus_stand_side_by_side(repository: Path) -> None:
    build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit(H200))
    written = build(EngineRequest(repository), FakeToolkit(A100))
    names = [record["file"] for record in written["engines"]["image_encoder"]]
    assert names == ["image_encoder/1/model.plan.cc80", IMAGE_ENGINE]
    config = read_config(repository / "image_encoder" / "config.pbtxt")
    assert dict(config.cc_model_filenames) == {"8.0": "model.plan.cc80", "9.0": "model.plan.cc90"}
    manifests.verify(repository)


def test_a_second_build_for_a_gpu_replaces_the_first(repository: Path) -> None:
    build(EngineRequest(repository), FakeToolkit())
    written = build(EngineRequest(repository, workspace_gib=2), FakeToolkit())
    assert [record["options"]["workspace_gib"] for record in written["engines"]["text_encoder"]] == [2]


FAILURES: dict[str, tuple[FakeToolkit, type[ExportError], str]] = {
    "out of memory": (
        FakeToolkit(fail=RuntimeError("[memory.cpp] CUDA out of memory")),
        EngineError,
        r"CUDA out of memory; the workspace was 4 GiB: .*--workspace GIB",
    ),
    "out of the host's memory": (
        FakeToolkit(fail=MemoryError()),
        EngineError,
        "out of memory; the workspace was 4 GiB",
    ),
    "a graph that is not parsed": (FakeToolkit(fail=EngineError("cannot parse")), EngineError, "cannot parse"),
    "other embeddings": (
        FakeToolkit(spoil=lambda embeddings: np.roll(embeddings, 1, axis=1)),
        ParityError,
        r"image tower, engine, batch 1: cosine .*0\.99999 .*in float32; the engines that stood there",
    ),
    "not a number": (FakeToolkit(spoil=lambda embeddings: embeddings * np.nan), ParityError, "cosine nan"),
    "one bad value": (FakeToolkit(spoil=lambda embeddings: embeddings + 2e-4), ParityError, "max abs 2.00e-04"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_build_leaves_everything_as_it_was(case: str, repository: Path) -> None:
    toolkit, error, message = FAILURES[case]
    build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit())
    before = snapshot(repository)
    with pytest.raises(error, match=message):
        build(EngineRequest(repository, workspace_gib=4), toolkit)
    assert snapshot(repository) == before
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_a_text_engine_that_fails_keeps_the_image_engine_back(repository: Path) -> None:
    def spoil(embeddings: np.ndarray) -> np.ndarray:
        return -embeddings if len(toolkit.asked) == 2 else embeddings

    toolkit = FakeToolkit(spoil=spoil)
    with pytest.raises(ParityError, match="text tower, engine, batch 1, length 16"):
        build(EngineRequest(repository), toolkit)
    assert not list(repository.glob("*/1/model.plan*"))


def test_an_onnx_changed_after_its_gate_is_not_built(repository: Path) -> None:
    with (repository / "text_encoder" / "1" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    toolkit = FakeToolkit()
    with pytest.raises(RepositoryError, match=r"text_encoder/1/model\.onnx was changed; export it again"):
        build(EngineRequest(repository), toolkit)
    assert toolkit.asked == []


def test_an_export_during_the_build_wins(repository: Path) -> None:
    class Meanwhile(FakeToolkit):
        def build(self, request):
            path = repository / "manifest.json"
            content = json.loads(path.read_text())
            content["files"]["image_encoder/1/model.onnx"] = "0" * 64
            path.write_text(json.dumps(content))
            return super().build(request)

    with pytest.raises(EngineError, match="exported again while its engines were built"):
        build(EngineRequest(repository), Meanwhile())
    assert not list(repository.glob("*/1/model.plan*"))


def test_an_engine_cut_in_half_is_told_and_built_again(repository: Path, capsys) -> None:
    build(EngineRequest(repository), FakeToolkit())
    half(repository / IMAGE_ENGINE)
    assert main(["check", str(repository)]) == 2
    message = capsys.readouterr().err
    assert f"{IMAGE_ENGINE} was changed; build its engines again: tritonclip engine build" in message
    build(EngineRequest(repository), FakeToolkit())
    manifests.verify(repository)


RANGES: dict[str, tuple[Callable[[], Ranges], str]] = {
    "a batch that the server sends is left out": (lambda: Ranges(Range(1, 8, 16)), "batches of 1 to 32"),
    "a single text is left out": (lambda: Ranges(text_batch=Range(2, 8, 64)), "--text-batch 2:8:64 given"),
    "a bucket is left out": (lambda: Ranges(text_length=Range(16, 32, 32)), "pads to 16, 32, 77"),
    "longer than the context": (lambda: Ranges(text_length=Range(16, 32, 78)), "up to 77 ids"),
    "descending": (lambda: Ranges(Range(8, 4, 32)), "8:4:32 given; MIN:OPT:MAX must"),
    "no range": (lambda: Ranges(Range.parse("8")), "'8' given; write MIN:OPT:MAX"),
}


@pytest.mark.parametrize("case", RANGES)
def test_ranges_that_cannot_be_served(case: str, repository: Path) -> None:
    make, message = RANGES[case]
    with pytest.raises(EngineError, match=message):
        plan(EngineRequest(repository, make()))


@pytest.mark.parametrize("workspace", [0.0, -1.0, float("nan")])
def test_a_workspace_must_be_some(workspace: float, repository: Path) -> None:
    with pytest.raises(EngineError, match="--workspace .* given"):
        EngineRequest(repository, workspace_gib=workspace)


@pytest.mark.parametrize(
    ("version", "fits"), [("10.16.1.11", True), ("11.4.0.106", True), ("8.6.1", False), ("12.0", False)]
)
def test_the_major_versions_of_tensorrt(version: str, fits: bool) -> None:
    if fits:
        check_major(version)
        return
    with pytest.raises(EngineError, match=f"TensorRT {version} is installed; 10 and 11 are supported"):
        check_major(version)


def test_a_machine_without_tensorrt_says_so(repository: Path, capsys) -> None:
    pytest.importorskip("onnx")
    before = snapshot(repository)
    assert main(["engine", "build", str(repository)]) == 2
    assert "TensorRT cannot be imported here" in capsys.readouterr().err
    assert snapshot(repository) == before


def test_a_dry_run_prints_what_trtexec_would_be_asked(repository: Path, capsys) -> None:
    words = ["engine", "build", str(repository), "--dry-run", "--workspace", "4", "--version-compatible"]
    assert main(words) == 0
    image, text = capsys.readouterr().out.splitlines()
    assert image.split() == [
        "trtexec",
        f"--onnx={repository}/image_encoder/1/model.onnx",
        f"--saveEngine={repository}/image_encoder/1/model.plan.ccGPU",
        "--stronglyTyped",
        "--noTF32",
        "--minShapes=pixels:1x48x48x3",
        "--optShapes=pixels:32x48x48x3",
        "--maxShapes=pixels:32x48x48x3",
        "--memPoolSize=workspace:4096",
        "--versionCompatible",
        f"--timingCacheFile={repository}.timing-cache-GPU",
    ]
    assert "--maxShapes=input_ids:64x77" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph-batches", "1,2"], "--graph-batches without --runtime tensorrt does nothing"),
        (["--runtime", "tensorrt", "--graph-batches", "1;2"], "--graph-batches 1;2 given; write sizes like 1,8,32"),
        (
            ["--runtime", "tensorrt", "--graph-batches", "1,33"],
            "--graph-batches 33 is set; image_encoder serves batches of 1 to 32",
        ),
    ],
)
def test_graph_batches_that_cannot_be_had(options: list[str], message: str, repository: Path, capsys) -> None:
    assert main(["engine", "build", str(repository), "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err


def test_no_repository(tmp_path: Path, capsys) -> None:
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    assert main(["engine", "build", str(tmp_path / "none")]) == 2
    assert "is no model repository" in capsys.readouterr().err
