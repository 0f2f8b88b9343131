"""What a server gets of its surroundings: variables, and handles."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

RUN_DIR = "TRITONCLIP_RUN_DIR"
# Containers may allow a billion, which some programs go through one by one.
_MOST_FILES = 1 << 20


def server_variables(run_dir: Path) -> dict[str, str]:
    """Variables for tritonserver and its Python models; what the caller has set itself wins.

    Large messages lie in mappings of their own, which go back to the system when they are freed: glibc raises its
    threshold up to 32 MiB with every one of them, and keeps freed memory in as many arenas as there are threads.
    """
    return {
        RUN_DIR: str(run_dir),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
        "MALLOC_ARENA_MAX": "4",
    }


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system lets them have, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
