"""`tritonclip bench tune` on the demo: what it leaves of a repository, and what it finds on the real server."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configuring import configure, content
from tritonclip_bench.commands import bench_tune
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_bench.traffic import workload
from tritonclip_bench.tune import copy as tune_copy
from tritonclip_bench.tune import measure as tune_measure
from tritonclip_client.main import main
from tritonclip_export.repository.configs import read_config, read_configs, write_configs
from tritonclip_export.repository.manifest import file_hash, read_manifest, verify
from tritonclip_export.settings import Settings
from tritonclip_export.spec import ServingSpec
from tuning import settings, with_idle_cores


@pytest.fixture
def repository(demo_repository: Path, tmp_path: Path) -> Path:
    return with_idle_cores(demo_repository, tmp_path / "served" / "repository")


def tune(repository: Path, *options: object) -> int:
    return main(["bench", "tune", str(repository), *map(str, options)])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Settings]]:
    """Servers and loads that take no time; twice as many images with two processes. What was served is kept."""
    served: list[tuple[Path, Settings]] = []

    def serve(copy: Path, **_: Any):
        served.append((copy, settings(copy)))
        return nullcontext(SimpleNamespace(grpc_address="127.0.0.1:1"))

    def load(plan: Any, *, progress: bool) -> dict[str, Any]:
        copy, now = served[-1]
        assert read_configs(copy)["preprocess"].parameters["threads"].string_value == str(now.preprocess_threads)
        rate = 100.0 * now.preprocess_threads * (3 if spec_of(copy).precision == "float16" else 1)
        failures = 1 if now.threads == 7 else 0
        total = {
            "requests": 1000,
            "items": 1000,
            "items_per_s": rate,
            "requests_per_s": rate,
            "latency_ms": {"mean": 9.0, "p50": 9.0, "p95": 10.0, "p99": 10.0, "max": 10.0},
            "failures": failures,
            "failure_reasons": {"UNAVAILABLE: no": failures} if failures else {},
            "unanswered": 0,
        }
        machine = {"client_cpu_cores": 0.9, "machine_cpu_share": 0.5, "window_s": 10.0}
        return {"total": total, "by_model": {"embed_image": total}, **machine, "images": {"source": "drawn"}}

    def describe(address: str) -> ServerInfo:
        copy, now = served[-1]
        return ServerInfo("2.51.0", spec_of(copy), {"embed_image": now.image_batch, "embed_text": now.text_batch})

    for module, name, fake in (
        (tune_measure, "TritonServer", serve),
        (tune_measure, "run_load", load),
        (workload, "describe", describe),
    ):
        monkeypatch.setattr(module, name, fake)
    return served


def spec_of(repository: Path) -> ServingSpec:
    return ServingSpec.from_dict(read_manifest(repository)["spec"])


def test_the_repository_stays_as_it_is(repository: Path, loaded: list, tmp_path: Path, capsys) -> None:
    """Without --write: every file, and nothing beside the repository; the weights are shared and nothing else."""
    before, modified = content(repository), mtimes(repository)
    result, page = tmp_path / "tuned.json", tmp_path / "tuned.html"
    price = ("--price-per-hour", "3.6")
    assert (
        tune(
            repository,
            "--vary",
            "preprocess_threads=1,2,3",
            "--label",
            "a machine",
            "--json",
            result,
            "--html",
            page,
            *price,
        )
        == 0
    )
    assert (content(repository), mtimes(repository)) == (before, modified)
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]
    assert {copy for copy, _ in loaded}.isdisjoint({repository})

    out = capsys.readouterr().out
    assert "best: preprocess_threads=3: 3.00 ± 0.00 x the present throughput" in out
    assert "not written (--write does)" in out
    assert "the load generator used 0.90 of one core" in out
    record = json.loads(result.read_text())
    assert (record["schema"], record["kind"], record["label"], record["broken"]) == (2, "tune", "a machine", None)
    assert (record["verdict"], record["written"]) == ("better", False)
    assert record["best"]["changes"] == {"preprocess_threads": 3}
    assert record["best"]["ratio"]["mean"] == pytest.approx(3)
    assert record["present"]["settings"] == settings(repository).to_dict() | {"graph_batches": None}
    labels = ["present", "preprocess_threads=2", "preprocess_threads=3"]
    assert [one["label"] for one in record["trials"]] == labels
    assert [one["label"] for one in record["records"]] == labels
    assert [one["kind"] for one in record["records"]] == ["load"] * 3
    for trial, load in zip(record["trials"], record["records"], strict=True):
        assert len(trial["rounds"]) == len(load["repeats"]) == load["spread"]["items_per_s"]["n"]
    assert record["records"][0]["cost"]["dollars_per_million"] == pytest.approx(10)
    assert "USD/million" in out
    assert "preprocess_threads=3" in page.read_text()
    assert str(repository.parent) not in result.read_text() + page.read_text()


def mtimes(repository: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in repository.rglob("*")}


def test_the_best_is_written_as_configure_does(repository: Path, loaded: list, capsys) -> None:
    before = settings(repository)
    assert tune(repository, "--vary", "preprocess_threads=2", "--write") == 0
    verify(repository)
    assert settings(repository) == before.changed({"preprocess_threads": 2})
    assert "; written, and read by a server when it starts" in capsys.readouterr().out


def test_what_fails_is_told_and_the_rest_measured(repository: Path, loaded: list, capsys) -> None:
    """Settings that the server cannot have, that refuse the load, and with which requests fail."""
    varied = ("--vary", "preprocess_threads=1,2", "--vary", "threads=1,7", "--vary", "image_batch=2,32")
    assert tune(repository, *varied, "--batch-size", "4") == 0
    out = capsys.readouterr().out
    assert "best: preprocess_threads=2:" in out
    assert "failed: 1 of 1001 requests failed: UNAVAILABLE: no" in out
    assert "failed: --batch-size 4; embed_image on this server takes 1 to 2 in a request" in out


def test_another_precision_is_reported_and_never_written(
    repository: Path, demo_repository: Path, loaded: list, tmp_path: Path, capsys
) -> None:
    other = shutil.copytree(demo_repository, tmp_path / "half")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["spec"] |= {"precision": "float16", "fingerprint": "f" * 64}
    for name in ("embed_image", "embed_text", "clip"):
        path = other / name / "config.pbtxt"
        config = read_config(path)
        config.parameters["fingerprint"].string_value = "f" * 64
        config.parameters["serving_spec"].string_value = ServingSpec.from_dict(manifest["spec"]).to_json()
        write_configs(other, {name: config})
        manifest["files"][f"{name}/config.pbtxt"] = file_hash(path)
    (other / "manifest.json").write_text(json.dumps(manifest))
    half, result = content(other), tmp_path / "tuned.json"
    varied = ("--vary", "preprocess_threads=2", "--write", "--json", result)
    assert tune(repository, "--repository", other, *varied) == 0
    assert (
        "precision=float16: 3.00 ± 0.00 x the throughput of float32 with the same settings" in capsys.readouterr().out
    )
    assert content(other) == half
    assert spec_of(repository).precision == "float32"
    told = json.loads(result.read_text())["exports"]
    assert told[0]["label"] == "precision=float16, preprocess_threads=2"
    assert [(one["precision"], one["over"]) for one in told] == [("float16", "preprocess_threads=2")]
    assert told[0]["ratio"]["mean"] == pytest.approx(3)

    # Now those are the present settings, and the only others are as good.
    assert tune(repository, "--repository", other, "--vary", "threads=2", "--json", result) == 0
    assert "the present settings are as good: no gain of 2% or more exceeds the noise" in capsys.readouterr().out
    assert json.loads(result.read_text())["exports"][0]["label"] == "precision=float16"

    assert tune(repository, "--repository", repository) == 2
    assert "give an export in another precision" in capsys.readouterr().err
    manifest["source"]["weights_sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert tune(repository, "--repository", other) == 2
    assert "is not of the same model as" in capsys.readouterr().err


def test_settings_that_changed_meanwhile_are_not_overwritten(
    repository: Path, loaded: list, monkeypatch, capsys
) -> None:
    written = bench_tune._write

    def write(*arguments: Any) -> None:
        configure(repository, "--threads", "2")
        written(*arguments)

    monkeypatch.setattr(bench_tune, "_write", write)
    assert tune(repository, "--vary", "preprocess_threads=2", "--write") == 2
    assert settings(repository).preprocess_threads == 1
    assert "was changed since the sweep began" in capsys.readouterr().err


@pytest.mark.parametrize("linkable", [True, False])
def test_a_copy_shares_the_weights_alone(repository: Path, tmp_path: Path, monkeypatch, linkable: bool) -> None:
    """Hard links, or symbolic ones where the disk or the user allows none."""
    if not linkable:
        monkeypatch.setattr(os, "link", failing_link)
    (repository / "image_encoder" / "1" / "model.onnx.data").write_bytes(bytes(1 << 20))
    weights = list(repository.rglob("model.onnx*"))
    assert len(weights) == 3
    large = [path for path in repository.rglob("*") if path.is_file() and path.stat().st_size >= 1 << 20]
    copy = tune_copy.copy(repository, tmp_path / "copy")
    # A server that ran before has left caches.
    for path in (path for path in repository.rglob("*") if path.is_file() and path.parent.name != "__pycache__"):
        assert path.samefile(copy / path.relative_to(repository)) == (path in weights or path in large)
    before = content(repository)
    tune_copy.apply(copy, settings(copy).changed({"preprocess_threads": 5}))
    assert settings(copy).preprocess_threads == 5
    assert content(repository) == before


def failing_link(*_: object, **__: object) -> None:
    raise OSError("another disk")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vary", "queue_delay_us=100"], "queue_delay_us is 100 for the runtime onnxruntime-python"),
        (["--vary", "threads=1"], "nothing to try: the values are the present ones"),
        (["--budget", "30s"], "--budget 30s given; this sweep takes at least"),
        (["--instance", "none"], "no price for the instance 'none'"),
        (["--images", "/none"], "/none"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    repository: Path, loaded, capsys, options: list[str], message
) -> None:
    assert tune(repository, *options) == 2
    assert message in capsys.readouterr().err
    assert not loaded
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_what_is_no_repository(tmp_path: Path, capsys) -> None:
    assert tune(tmp_path) == 2
    assert "is no model repository" in capsys.readouterr().err
