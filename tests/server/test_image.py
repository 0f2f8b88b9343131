"""What Dockerfile.server installs is enough: a new environment with that alone serves the demo.

The server is the embedded one, put on PATH as a container's is. NVIDIA's image itself was not at hand.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTRITON = Path(find_spec("pytriton").submodule_search_locations[0])
ABSENT = ("torch", "pytriton", "open_clip", "transformers", "onnx", "locust")

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `venv`, made by the steps of Dockerfile.server, and `bin/tritonserver`."""
    folder = tmp_path_factory.mktemp("image")
    _ran([sys.executable, "-m", "venv", folder / "venv"])
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    requirements = folder / "requirements.txt"
    requirements.write_text(_ran([sys.executable, ROOT / "deploy" / "requirements.py", "models"]))
    try:
        _ran([*pip, "-r", requirements, "-c", ROOT / "constraints.txt"])
        _ran([*pip, "--no-deps", ROOT])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the packages could not be fetched: {error.stderr.strip()[-200:]}")
    _put_on_path(folder)
    return folder


@pytest.fixture
def environment(image: Path, tmp_path: Path) -> dict[str, str]:
    path = f"{image / 'venv' / 'bin'}:{image / 'bin'}:{os.defpath}"
    return {"PATH": path, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}


@pytest.fixture
def address(demo_repository: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A server started as the container starts it, on free ports."""
    ports = ("--grpc-port=0", "--metrics-port=0")
    command = ["tritonclip", "serve", demo_repository, "--server", "path", "--show-log", *ports]
    with (tmp_path / "shown").open("wb") as shown:
        pipes = {"stdout": subprocess.PIPE, "stderr": shown, "text": True}
        with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as server:
            ready = server.stdout.readline()
            assert "gRPC " in ready, (tmp_path / "shown").read_text()
            yield ready.partition("gRPC ")[2].partition(",")[0]
            server.terminate()


def test_it_serves_without_anything_else(image: Path, address: str, environment: dict[str, str], demo: Path) -> None:
    assert "embedded an image and a text" in _ran(["tritonclip", "health", "--address", address], env=environment)
    file = demo / "images" / "pencil_red_square.jpg"
    labels = ("--labels", "a red square", "--labels", "a red ring")
    shown = _ran(["tritonclip", "classify", file, *labels, "--address", address], env=environment)
    assert "a red square" in shown.splitlines()[2]
    found = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    assert _ran([image / "venv" / "bin" / "python", "-c", found]) == "[]\n"


def _put_on_path(folder: Path) -> None:
    """A tritonserver that brings its own backends and libraries, and no Python of its own."""
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    server = PYTRITON / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (*(server / "backends" / "python").iterdir(), *(server / "python_backend_stubs" / version).iterdir()):
        (python / file.name).symlink_to(file)
    libraries = f"{PYTRITON.parent / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    flags = [f"--backend-directory={folder / 'backends'}", f"--cache-directory={server / 'caches'}"]
    flags += ["--allow-gpu-metrics=false"]
    program = folder / "bin" / "tritonserver"
    program.parent.mkdir()
    line = shlex.join(["exec", str(server / "bin" / "tritonserver"), *flags])
    program.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH={shlex.quote(libraries)}\n{line} "$@"\n')
    program.chmod(0o755)


def _ran(command: list[object], env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
