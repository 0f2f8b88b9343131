"""What a server gets of its surroundings: variables, and handles."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

RUN_DIR = "TRITONCLIP_RUN_DIR"
# Containers may allow a billion, which some programs go through one by one.
_MOST_FILES = 1 << 20


def server_variables(run_dir: Path) -> dict[str, str]:
    """Variables for tritonserver and its Python models."""
    return {RUN_DIR: str(run_dir)}


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system lets them have, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
