"""Writing and verifying `manifest.json`, without torch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_client.main import main
from tritonclip_export.errors import RepositoryError
from tritonclip_export.repository.configs import ENSEMBLES, read_config, write_configs
from tritonclip_export.repository.manifest import CODE, MANIFEST, verify, write_manifest
from tritonclip_export.repository.tree import LARGE
from tritonclip_export.spec import ImageSpec, ScoringSpec, ServingSpec, TextSpec

TEMPLATES = Path(__file__).parents[2] / "model_repository"
SPEC = ServingSpec(
    name="m",
    architecture="small",
    embedding_dim=48,
    image=ImageSpec(60, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", (1, 2, 3)),
    text=TextSpec(50, 49408, (20, 50), 0, 49406, 49407, "canonicalize", "argmax"),
    scoring=ScoringSpec("sigmoid", 12.5, -3.25),
    fingerprint="abc",
)
CONTENT = {"created": "2026-01-01T00:00:00+00:00", "spec": json.loads(json.dumps(vars(SPEC), default=vars))}
WEIGHTS = "image_encoder/1/model.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in ENSEMBLES:
        (root / name).mkdir(parents=True)
        config = read_config(TEMPLATES / name / "config.pbtxt")
        config.parameters["fingerprint"].string_value = "abc"
        config.parameters["serving_spec"].string_value = SPEC.to_json()
        write_configs(root, {name: config})
    (root / WEIGHTS).parent.mkdir(parents=True)
    (root / WEIGHTS).write_bytes(bytes(LARGE))
    (root / "image_encoder" / "1" / "model.py").write_text("1\n")
    write_manifest(root, CONTENT)
    return root


def test_what_was_written_verifies(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(repository)["spec"]["name"] == "m"
    assert main(["check", str(repository)]) == 0
    assert "5 files as exported" in capsys.readouterr().out


def planted_cache(root: Path) -> None:
    (root / "clip" / "__pycache__").mkdir()
    (root / "clip" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")


def planted_socket(root: Path) -> None:
    # The whole path is too long for a socket.
    folder = os.open(root, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(f"/proc/self/fd/{folder}/s")
    os.close(folder)


FOREIGN = {
    "a cache": (planted_cache, "clip/__pycache__ is a cache of Python"),
    "bytecode": (lambda root: (root / "clip" / "model.pyc").touch(), "clip/model.pyc is a cache of Python"),
    "another model": (lambda root: shutil.copytree(root / "clip", root / "evil"), "evil/config.pbtxt is not in the"),
    "a linked model": (lambda root: (root / "evil").symlink_to("/usr"), "evil is a link, and a repository holds none"),
    "a linked file": (lambda root: (root / "clip" / "a.py").symlink_to("/etc/passwd"), "clip/a.py is a link"),
    "a dangling link": (lambda root: (root / "clip" / "a.py").symlink_to("nowhere"), "clip/a.py is a link"),
    "a loop": (lambda root: (root / "clip" / "loop").symlink_to(root), "clip/loop is a link"),
    "an empty folder": (lambda root: (root / "evil" / "1").mkdir(parents=True), "evil/1 is an empty folder"),
    "a pipe": (lambda root: os.mkfifo(root / "clip" / "pipe"), "clip/pipe is neither a file nor a folder"),
    "a socket": (planted_socket, "s is neither a file nor a folder"),
    "a manifest below": (lambda root: (root / "clip" / MANIFEST).touch(), "clip/manifest.json is not in the manifest"),
    "an extension": (lambda root: (root / "image_encoder" / "1" / "model.so").touch(), "model.so is not in the"),
}


@pytest.mark.parametrize("level", ["all", "code"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_in_the_manifest_is_refused(repository: Path, what: str, level: str) -> None:
    plant, message = FOREIGN[what]
    plant(repository)
    with pytest.raises(RepositoryError, match=f"{message}.*delete it, or copy the repository again"):
        verify(repository, level=level)


def test_a_listed_file_behind_a_link_is_refused(repository: Path, tmp_path: Path) -> None:
    """Its content is right, and could be exchanged from elsewhere."""
    shutil.move(repository / WEIGHTS, tmp_path / "weights")
    (repository / WEIGHTS).symlink_to(tmp_path / "weights")
    with pytest.raises(RepositoryError, match="model.onnx is a link, and a repository holds none; export it again"):
        verify(repository)


def test_a_cache_in_the_manifest_is_refused_all_the_same(repository: Path) -> None:
    planted_cache(repository)
    manifest = json.loads((repository / MANIFEST).read_text())
    manifest["files"]["clip/__pycache__/model.cpython-311.pyc"] = "2" * 64
    (repository / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match="is a cache of Python"):
        verify(repository)


def test_a_repository_behind_a_link_is_one(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    verify(tmp_path / "link")


def test_a_changed_a_missing_and_a_new_file_are_named(repository: Path) -> None:
    (repository / WEIGHTS).write_bytes(b"other")
    shutil.rmtree(repository / "clip")
    (repository / "new.txt").write_text("x")
    with pytest.raises(RepositoryError) as caught:
        verify(repository)
    message = str(caught.value)
    assert "clip/config.pbtxt is missing" in message
    assert "new.txt is not in the manifest" in message
    assert "image_encoder/1/model.onnx was changed" in message


def test_five_are_named_and_the_others_counted(repository: Path) -> None:
    for number in range(9):
        (repository / f"file{number}").touch()
    with pytest.raises(RepositoryError, match="file4 is not in the manifest and 4 more; "):
        verify(repository)


def test_code_is_compared_at_every_level_and_large_weights_at_one(repository: Path) -> None:
    (repository / WEIGHTS).write_bytes(b"1" + bytes(LARGE - 1))
    verify(repository, level=CODE)
    with pytest.raises(RepositoryError, match="model.onnx was changed"):
        verify(repository)
    (repository / "image_encoder" / "1" / "model.py").write_text("2\n" + "#" * LARGE)
    with pytest.raises(RepositoryError, match="model.py was changed"):
        verify(repository, level=CODE)


def test_an_engine_counts_as_code(repository: Path) -> None:
    engine = repository / "image_encoder" / "1" / "model.plan.cc90"
    engine.write_bytes(bytes(LARGE))
    write_manifest(repository, CONTENT)
    engine.write_bytes(b"1" + bytes(LARGE - 1))
    with pytest.raises(RepositoryError, match="model.plan.cc90 was changed"):
        verify(repository, level=CODE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "carries another fingerprint than the manifest"),
        ({"embedding_dim": 49}, "carries another serving spec than the manifest"),
        ({"image": {**CONTENT["spec"]["image"], "mean": [0.1, 0.2, 0.4]}}, "carries another serving spec"),
        ({"image": 5}, "is damaged: the serving spec is incomplete or has unknown keys"),
        ({"image": [5]}, "is damaged: the serving spec is incomplete or has unknown keys"),
        ({"precision": ["x"]}, "is damaged: precision is"),
    ],
)
def test_a_spec_that_the_configs_do_not_carry(repository: Path, change: dict, message: str) -> None:
    manifest = json.loads((repository / MANIFEST).read_text())
    manifest["spec"] |= change
    (repository / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match=message):
        verify(repository)


ENGINE = {"file": "f", "gpu": "g", "compute_capability": "9.0", "tensorrt": "10.16", "options": {}}
DAMAGED = {
    "nothing there": None,
    "no JSON": "{",
    "deep": "[" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "a huge number": "1" * 5000,
    "no UTF-8": b"\xff\xfe\x00",
    "a newer format": {"format": 99},
    "a format that is nearly one": {"format": True},
    "a list": "[]",
    "a number": "5",
    "files that are a number": {"files": 5},
    "a spec that is a number": {"spec": 5},
    "a spec that is nothing": {"spec": None},
    "settings that are a list": {"settings": []},
    "engines that are a number": {"engines": 5},
    "engines without records": {"engines": {"image_encoder": 5}},
    "engines of numbers": {"engines": {"image_encoder": [5]}},
    "engines without options": {"engines": {"image_encoder": [ENGINE]}},
    "a digest that is a number": {"files": {"a": 5}},
    "a digest that is short": {"files": {"a": "ab"}},
    "a digest in capitals": {"files": {"a": "A" * 64}},
    "a path that leads out": {"files": {"../a": "a" * 64}},
    "an absolute path": {"files": {"/etc/passwd": "a" * 64}},
    "a path in disguise": {"files": {"clip/./a": "a" * 64}},
}


@pytest.mark.parametrize("command", ["check", "serve", "configure"])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_manifest_is_one_clear_error(repository: Path, what: str, command: str, capsys) -> None:
    path, damage = repository / MANIFEST, DAMAGED[what]
    if isinstance(damage, dict):
        damage = json.dumps({**json.loads(path.read_text()), **damage})
    path.unlink()
    # `serve` asks for them before it reads the manifest.
    (repository / "embed_text").mkdir(exist_ok=True)
    if damage is not None:
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    assert main([command, str(repository)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "export" in error


def test_checking_does_not_load_torch(repository: Path) -> None:
    code = (
        "import sys; from tritonclip_client.main import main; "
        f"main(['check', {str(repository)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
