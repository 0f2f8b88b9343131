"""What a server cannot serve is refused before it starts."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tritonclip_export.settings import EMBEDDED_RELEASE
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.fit import check_fit
from tritonclip_serve.installation import Installation, find_server

ENSEMBLE, PYTHON = 'name: "clip"\nplatform: "ensemble"\n', 'name: "tokenizer"\nbackend: "python"\n'


def repository(folder: Path, *configs: str, **settings: str) -> Path:
    for number, config in enumerate(configs):
        (folder / f"model{number}").mkdir()
        (folder / f"model{number}" / "config.pbtxt").write_text(config)
    content = {"format": 1, "spec": {}, "files": {}, **({"settings": settings} if settings else {})}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def server(*backends: str, release: str | None = None) -> Installation:
    return Installation(Path("tritonserver"), "this server", backends=frozenset(backends), release=release)


def test_every_backend_is_there(tmp_path: Path) -> None:
    check_fit(repository(tmp_path, ENSEMBLE, PYTHON), server("python"))


@pytest.mark.parametrize(
    ("config", "backend"),
    [
        ('backend: "onnxruntime"\n', "onnxruntime"),
        ('platform: "tensorrt_plan"\n', "tensorrt"),
    ],
)
def test_a_backend_that_is_missing(tmp_path: Path, config: str, backend: str) -> None:
    given = repository(tmp_path, ENSEMBLE, config)
    with pytest.raises(
        RepositoryError, match=f"model1 of .* needs Triton's backend '{backend}'.*this server has python"
    ):
        check_fit(given, server("python"))
    check_fit(given, server("python", backend))


def test_backends_that_could_not_be_listed_are_not_compared(tmp_path: Path) -> None:
    check_fit(repository(tmp_path, 'backend: "onnxruntime"\n'), Installation(Path("tritonserver"), "this server"))


@pytest.mark.parametrize(("name", "loads"), [("my_clip.v2", True), ("my-clip", False), ("clíp", False)])
def test_a_path_that_dali_cannot_load_from(name: str, loads: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Pytest's own folders have a "-".
    root = Path(tempfile.mkdtemp(prefix="fit", dir="/tmp", suffix="_"))
    try:
        (root / name).mkdir()
        given = repository(root / name, PYTHON, 'backend: "dali"\n')
        if loads:
            check_fit(given, server("python", "dali"))
        else:
            with pytest.raises(RepositoryError, match="DALI backend loads no model from .*set TMPDIR to another"):
                check_fit(given, server("python", "dali"))
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("release", ["26.04", "26.05", "27.01", None])
def test_a_release_that_is_new_enough(tmp_path: Path, release: str | None) -> None:
    check_fit(repository(tmp_path, PYTHON, release="26.04"), server("python", release=release))


@pytest.mark.parametrize("release", ["26.03", "25.12", "24.10"])
def test_a_release_that_is_too_old(tmp_path: Path, release: str) -> None:
    given = repository(tmp_path, PYTHON, release="26.04")
    with pytest.raises(
        RepositoryError, match=f"for tritonserver 26.04 or later.*this server is {release}.*--release {release}"
    ):
        check_fit(given, server("python", release=release))


def test_what_the_embedded_server_has(tmp_path: Path) -> None:
    found = find_server("embedded", tmp_path)
    assert found.backends == {path.name for path in (tmp_path / "backends").iterdir()} == {"python"}
    assert found.release == EMBEDDED_RELEASE


def test_what_a_container_has(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for backend in ("python", "tensorrt"):
        (tmp_path / "backends" / backend).mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.04")
    found = find_server("path", tmp_path)
    assert (found.backends, found.release) == ({"python", "tensorrt"}, "26.04")
