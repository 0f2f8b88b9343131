"""What a run needs beforehand: the checkpoint in both forms, the exported repository, the images as files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from baselines.environments import CHECKOUT, HERE, SideError, last_lines, with_exporter
from tritonclip_bench.errors import BenchError
from tritonclip_bench.traffic.images import Images, load_images

EXPORT_S = 900
# What decides how an exported repository looks.
SOURCES = (CHECKOUT / "export" / "tritonclip_export", CHECKOUT / "model_repository")


@dataclass(frozen=True)
class Material:
    """Files that all sides share.

    Attributes:
        name: of the checkpoint.
        folder: where everything is that a run can use again.
        checkpoint: holds open_clip's and Hugging Face's directory of the same weights.
        repository: what `tritonclip export` made of it.
        images: encoded, and as files in `image_files`.
    """

    name: str
    folder: Path
    checkpoint: Path
    repository: Path
    images: Images
    image_files: Path

    @property
    def hf(self) -> Path:
        """Hugging Face's directory.

        Raises:
            SideError: transformers has no place for this checkpoint.
        """
        folder = self.checkpoint / "hf"
        if not (folder / "preprocessor_config.json").is_file():
            raise SideError(
                f"this checkpoint has no form for transformers: {last_lines(self.folder / 'checkpoint.log')}"
            )
        return folder

    @property
    def open_clip(self) -> Path:
        """open_clip's directory."""
        return self.checkpoint / "open_clip"


def prepare(source: str, folder: Path) -> Material:
    """Make what is not there yet, or not of today's code.

    Args:
        source: an open_clip architecture, which gets random weights, or a checkpoint's directory.
        folder: is made.

    Raises:
        BenchError: the checkpoint cannot be read or exported.
    """
    name = Path(source).resolve().name
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, repository = folder / "checkpoint", folder / "repository"
    stamp, wanted = folder / "made_from.txt", _fingerprint(Path(source))
    if not (stamp.is_file() and stamp.read_text() == wanted):
        stamp.unlink(missing_ok=True)
        print(f"writing and exporting {source} into {folder} (a minute or more, once)", file=sys.stderr)
        _run([str(HERE / "checkpoint.py"), source, str(checkpoint)], folder / "checkpoint.log")
        if not (checkpoint / "open_clip" / "open_clip_model.safetensors").is_file():
            raise BenchError(f"{source} is no checkpoint to measure: {last_lines(folder / 'checkpoint.log')}")
        export = ("-m", "tritonclip_client.main", "export", str(checkpoint / "open_clip"), str(repository))
        if _run([*export, "--name", name, "--force"], folder / "export.log"):
            raise BenchError(f"{source} could not be exported:\n{last_lines(folder / 'export.log')}")
        stamp.write_text(wanted)
    images = load_images(None)
    return Material(name, folder, checkpoint, repository, images, _write(images, folder / "images"))


def _run(arguments: list[str], log: Path) -> int:
    with log.open("w") as out:
        command = [sys.executable, *arguments]
        environment = with_exporter() if arguments[0] != "-m" else None
        return subprocess.run(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=EXPORT_S
        ).returncode


def _write(images: Images, folder: Path) -> Path:
    """The images as files: drawing them takes longer than starting a load generator."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, encoded in enumerate(images.encoded):
        (folder / f"{number:03}.jpg").write_bytes(encoded)
    assert load_images(folder).encoded == images.encoded
    return folder


def _fingerprint(source: Path) -> str:
    """Of the code that writes and exports, and of the checkpoint's files, if `source` is a directory."""
    digest = hashlib.sha256(str(source).encode())
    for folder in SOURCES:
        for path in _files(folder):
            digest.update(path.name.encode() + path.read_bytes())
    for path in _files(source) if source.is_dir() else ():
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
