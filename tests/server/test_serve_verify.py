"""Nothing runs on a real server that the manifest does not vouch for; and the server leaves the repository alone."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient

from keys import make_key
from tritonclip_client import ClipClient
from tritonclip_client.main import main
from tritonclip_export.repository.manifest import file_hash
from tritonclip_serve import TritonServer
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.verified import lay_out

FREE = {"grpc_port": 0, "metrics_port": 0}
PORTS = ("--grpc-port", "0", "--metrics-port", "0")
CODE = Path("similarity") / "1" / "clip_scores.py"


@pytest.fixture
def repository(demo_repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo_repository, tmp_path / "repository")


def evil(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


def plant(source: Path, code: str) -> Path:
    """A cache that Python takes for that of `source` without looking at it, and that runs `code` too."""
    whole = source.with_name("whole.py")
    whole.write_text(source.read_text() + code)
    cache = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(whole), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    whole.unlink()
    return cache


def test_such_a_cache_does_run_where_nobody_looks(repository: Path, tmp_path: Path) -> None:
    """Or the test below would prove nothing."""
    plant(repository / CODE, evil(tmp_path / "marker"))
    words = [sys.executable, "-c", "import clip_scores"]
    subprocess.run(words, cwd=(repository / CODE).parent, env={**os.environ, "PYTHONSAFEPATH": ""}, check=True)
    assert (tmp_path / "marker").exists()


def cached(repository: Path, marker: Path) -> None:
    plant(repository / CODE, evil(marker))


def changed(repository: Path, marker: Path) -> None:
    path = repository / CODE
    path.write_text(path.read_text() + evil(marker))


def linked(repository: Path, marker: Path) -> None:
    """One more model, which is somewhere else."""
    other = marker.parent / "elsewhere"
    shutil.copytree(repository / "similarity", other)
    (other / "config.pbtxt").write_text((other / "config.pbtxt").read_text().replace('"similarity"', '"evil"'))
    (other / "1" / "model.py").write_text(evil(marker))
    (repository / "evil").symlink_to(other)


@pytest.mark.parametrize("verify", ["all", "code"])
@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (cached, "similarity/1/__pycache__ is a cache of Python"),
        (changed, "similarity/1/clip_scores.py was changed"),
        (linked, "evil is a link"),
    ],
)
def test_what_is_unknown_is_refused_and_does_not_run(
    tamper, message: str, verify: str, repository: Path, tmp_path: Path, capsys
) -> None:
    tamper(repository, tmp_path / "marker")
    assert main(["serve", str(repository), *PORTS, "--verify", verify]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "marker").exists()
    assert not list(repository.parent.glob("*.tritonserver-*"))


def test_what_was_compared_is_what_runs_also_later(repository: Path, tmp_path: Path) -> None:
    """A cache, code and a model that come while it runs: a model that is loaded again does not take them."""
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    with TritonServer(repository, log_path=tmp_path / "log", extra_args=explicit, **FREE) as server:
        # The server wrote no caches into it.
        assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
        cached(repository, tmp_path / "marker")
        changed(repository, tmp_path / "marker")
        control = grpcclient.InferenceServerClient(server.grpc_address)
        control.unload_model("similarity", headers=server.control_headers)
        control.load_model("similarity", headers=server.control_headers)
        control.close()
        image = (repository / "preprocess" / "warmup" / "image").read_bytes()[4:]
        with ClipClient(server.grpc_address, timeout_s=60) as client:
            assert client.similarity([image], ["a red circle", "a cat"]).probabilities.shape == (1, 2)
    assert not (tmp_path / "marker").exists()


def test_signed_or_not_served(repository: Path, tmp_path: Path, capsys) -> None:
    key, public = make_key(tmp_path)
    assert main(["serve", str(repository), *PORTS, "--verify-key", str(public)]) == 2
    assert f"{repository} is not signed" in capsys.readouterr().err
    assert main(["sign", str(repository), "--key", str(key)]) == 0
    with TritonServer(repository, log_path=tmp_path / "log", verify_key=str(public), **FREE) as server:
        assert server.pid
    # Code and its hash, changed together.
    changed(repository, tmp_path / "marker")
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["files"][str(CODE)] = file_hash(repository / CODE)
    (repository / "manifest.json").write_text(json.dumps(manifest))
    assert main(["serve", str(repository), *PORTS, "--verify-key", str(public)]) == 2
    assert "is not what" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_weights_are_linked_and_all_else_is_copied(repository: Path, tmp_path: Path) -> None:
    large = repository / "text_encoder" / "1" / "model.onnx"
    served = lay_out(repository, tmp_path / "served")
    assert {path.relative_to(served) for path in served.rglob("*") if path.is_file()} == {
        path.relative_to(repository) for path in repository.rglob("*") if path.is_file()
    }
    assert (served / "text_encoder" / "1" / "model.onnx").resolve() == large.resolve()
    assert not any(path.is_symlink() for suffix in (".py", ".pbtxt") for path in served.rglob(f"*{suffix}"))


def test_weights_are_compared_unless_told_otherwise(repository: Path, tmp_path: Path) -> None:
    weights = repository / "text_encoder" / "1" / "model.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RepositoryError, match="text_encoder/1/model.onnx was changed"):
        lay_out(repository, tmp_path / "served")


def test_a_temporary_folder_that_is_full_is_told(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="cannot be copied to .*; free space there, or set TMPDIR"):
        lay_out(repository, tmp_path / "file" / "served")
