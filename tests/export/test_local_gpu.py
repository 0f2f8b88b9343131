"""Engines against the machine they are to run on. nvidia-smi is played by a script, the GPU by nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tritonclip_export import local_gpu
from tritonclip_export.errors import EngineError
from tritonclip_export.local_gpu import LocalGpus, decode_version, detect, require
from tritonclip_serve.engines import check_engines
from tritonclip_serve.errors import RepositoryError

H200 = ("NVIDIA H200", "9.0")
A100 = ("NVIDIA A100-SXM4-40GB", "8.0")
T4 = ("Tesla T4", "7.5")


def manifest(*, version_compatible: bool = False, runtime: str = "tensorrt") -> dict:
    record = {
        "file": "image_encoder/1/model.plan.cc90",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "tensorrt": "10.16.1.11",
        "options": {"version_compatible": version_compatible},
    }
    spec = {"name": "m", "runtime": runtime}
    return {"format": 1, "spec": spec, "files": {}, "engines": {"image_encoder": [record]}}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch):
    """Call it with GPUs: nvidia-smi names them."""

    def install(*gpus: tuple[str, str], status: int = 0) -> None:
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir()
        rows = [f"{uuid(place)}, {name}, {capability}" for place, (name, capability) in enumerate(gpus)]
        lines = "\n".join(f"echo '{row}'" for row in rows)
        script.write_text(f"#!/bin/sh\n{lines}\nexit {status}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=":")
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            monkeypatch.delenv(name, raising=False)
        # Looking for it takes the loader and a compiler half a second.
        monkeypatch.setattr(local_gpu, "_library_version", lambda: None)

    return install


def uuid(place: int) -> str:
    return f"GPU-{place}{place}{place}{place}0000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("tensorrt", ["10.16.1", "10.16.1.11", None])
def test_the_machine_that_built_them_runs_them(tensorrt: str | None) -> None:
    assert "engines for NVIDIA H200" in require(manifest(), LocalGpus([H200], tensorrt))


def test_a_version_that_is_not_seen_is_said() -> None:
    assert "not compared" in require(manifest(), LocalGpus([H200], None))


def test_another_model_of_the_same_capability_is_said() -> None:
    line = require(manifest(), LocalGpus([("NVIDIA H100", "9.0")], "10.16.1"))
    assert "those for NVIDIA H100 were built on NVIDIA H200" in line


REFUSED = {
    "another GPU": (LocalGpus([A100], "10.16.1"), r"H200 \(compute capability 9.0\), this machine has .*A100.* 8.0"),
    "one of two GPUs": (LocalGpus([H200, A100], "10.16.1"), "this machine has NVIDIA A100"),
    "another patch": (LocalGpus([H200], "10.16.2"), r"built by TensorRT 10\.16\.1\.11, here is 10\.16\.2; serve with"),
    "another major": (LocalGpus([H200], "11.4.0"), r"built by TensorRT 10\.16\.1\.11, here is 11\.4\.0"),
    "no GPU": (LocalGpus([], "10.16.1"), "no GPU is seen here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_machines_are_refused_with_both_named(case: str) -> None:
    machine, message = REFUSED[case]
    with pytest.raises(EngineError, match=message):
        require(manifest(), machine)


@pytest.mark.parametrize(
    ("installed", "runs"), [("10.16.2", True), ("10.17.0", True), ("10.16.0", False), ("11.0.0", False)]
)
def test_version_compatible_engines_run_on_newer_ones_of_their_major(installed: str, runs: bool) -> None:
    if runs:
        require(manifest(version_compatible=True), LocalGpus([H200], installed))
        return
    with pytest.raises(EngineError, match="was built by TensorRT"):
        require(manifest(version_compatible=True), LocalGpus([H200], installed))


@pytest.mark.parametrize(("number", "version"), [(101601, "10.16.1"), (110400, "11.4.0"), (8601, "8.6.1")])
def test_the_librarys_number(number: int, version: str) -> None:
    assert decode_version(number) == version


def test_gpus_are_read_from_the_driver(driver) -> None:
    driver(H200, A100)
    assert detect().gpus == [H200, A100]


def test_a_driver_that_fails_names_no_gpu(driver) -> None:
    driver(H200, status=9)
    assert detect().gpus == []


BUILT = {
    "engines of this GPU": (manifest(), H200, 0),
    "engines of another GPU": (manifest(), A100, 1),
    "no engines": ({"spec": {"runtime": "onnxruntime-python"}}, H200, 1),
    "engines that serve nothing": (manifest(runtime="onnxruntime-python"), H200, 1),
    "no manifest": ([], H200, 1),
}


@pytest.mark.parametrize("case", BUILT)
def test_it_tells_a_script_whether_to_build(case: str, tmp_path: Path, driver, capsys) -> None:
    content, gpu, status = BUILT[case]
    driver(gpu)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert local_gpu.main([str(tmp_path)]) == status
    shown = capsys.readouterr()
    assert "engines for NVIDIA H200" in shown.out if status == 0 else shown.err.count("\n") == 1


def test_it_tells_it_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert local_gpu.main([str(tmp_path / "gone")]) == 1


VISIBLE = {
    "none": ("", []),
    "none by number": ("-1", []),
    "a number": ("1", [A100]),
    "another order": ("2, 0", [T4, H200]),
    "up to one that is not there": ("1,7,0", [A100]),
    "a UUID": (uuid(2), [T4]),
    "the beginning of a UUID": ("GPU-1111,0", [A100, H200]),
    "a beginning that fits several": ("GPU-", []),
    "a MIG instance, whose GPU is not known": ("MIG-4444", [H200, A100, T4]),
}


@pytest.mark.parametrize("case", VISIBLE)
def test_gpus_that_cuda_may_not_use_do_not_count(case: str, driver, monkeypatch) -> None:
    given, seen = VISIBLE[case]
    driver(H200, A100, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert detect().gpus == seen


@pytest.mark.parametrize(("gpus", "seen"), [([T4, H200], [T4, H200]), ([T4, T4], [T4])])
def test_a_number_tells_nothing_where_cuda_counts_the_fastest_first(gpus, seen, driver, monkeypatch) -> None:
    driver(*gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert detect().gpus == seen


def test_no_driver(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect().gpus == []


def serve(repository: Path, content: dict) -> None:
    (repository / "manifest.json").write_text(json.dumps(content))
    check_engines(repository)


def test_serve_refuses_engines_of_another_gpu(tmp_path: Path, driver) -> None:
    driver(A100)
    with pytest.raises(RepositoryError, match="the engines are for NVIDIA H200.*this machine has NVIDIA A100"):
        serve(tmp_path, manifest())


def test_serve_refuses_engines_of_another_tensorrt(tmp_path: Path, driver, monkeypatch) -> None:
    driver(H200)
    monkeypatch.setattr(local_gpu, "_library_version", lambda: "11.4.0")
    with pytest.raises(RepositoryError, match=r"built by TensorRT 10\.16\.1\.11, here is 11\.4\.0"):
        serve(tmp_path, manifest())


def test_serve_takes_the_engines_of_its_gpu(tmp_path: Path, driver) -> None:
    driver(H200)
    serve(tmp_path, manifest())


def test_engines_beside_towers_that_onnx_runtime_serves_do_not_matter(tmp_path: Path) -> None:
    serve(tmp_path, manifest(runtime="onnxruntime-python"))
