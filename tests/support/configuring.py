"""`tritonclip configure` on a repository, and what it says afterwards."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tritonclip_client.main import main
from tritonclip_export.repository.manifest import verify


def parsed(repository: Path) -> dict[str, ModelConfig]:
    """By Triton's protobuf, and not by what wrote them."""
    return {
        path.parent.name: text_format.Parse(path.read_text(), ModelConfig())
        for path in sorted(repository.glob("*/config.pbtxt"))
    }


def configure(repository: Path, *options: str) -> dict[str, ModelConfig]:
    assert main(["configure", str(repository), *options]) == 0
    verify(repository)
    return parsed(repository)


def content(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
