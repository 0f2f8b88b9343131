"""Keys to sign repositories with, and Debian's own minisign beside the library's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tritonclip_client.main import main


def make_key(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A secret key without a password, and its public one."""
    assert main(["sign", "--generate", str(folder / name), "--no-password"]) == 0
    return folder / name, folder / f"{name}.pub"


def minisign(*words: object, answers: str = "") -> str:
    """Run Debian's minisign, which must be there; skips the test otherwise."""
    if shutil.which("minisign") is None:
        pytest.skip("minisign is not installed: apt-get install minisign")
    command = ["minisign", *map(str, words)]
    done = subprocess.run(command, input=answers, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
