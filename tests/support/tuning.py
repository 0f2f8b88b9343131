"""Repositories to tune."""

from __future__ import annotations

import shutil
from pathlib import Path

from configuring import configure
from tritonclip_export.repository.configure import settings_of
from tritonclip_export.repository.manifest import read_manifest
from tritonclip_export.settings import Settings


def with_idle_cores(exported: Path, folder: Path) -> Path:
    """A copy with settings that leave cores idle."""
    shutil.copytree(exported, folder)
    configure(folder, "--threads", "1", "--preprocess-threads", "1")
    return folder


def settings(repository: Path) -> Settings:
    """Those of its manifest."""
    return settings_of(repository, read_manifest(repository))
