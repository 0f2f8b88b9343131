"""Environments of the baselines' own, so that none of their packages enters tritonclip's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tritonclip_bench.errors import BenchError

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
INSTALL_S = 1200
LAST_LINES = 15
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class SideError(BenchError):
    """A baseline cannot be installed, started or measured; the others go on without it."""

    exit_code = 1


def make(name: str, folder: Path, *, shares: bool) -> Path:
    """An environment with what `requirements-NAME.txt` names, made where there is none yet; its Python.

    Args:
        shares: packages of the running Python's environment are seen too, behind its own.

    Raises:
        SideError: pip failed; its log stands beside the environment.
    """
    home, requirements = folder / name, HERE / f"requirements-{name}.txt"
    python, stamp = home / "bin" / "python", home / "installed.txt"
    wanted = f"{sys.version}\n{sys.prefix}\n{requirements.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {home} (a minute or more, once)", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(home)], folder / f"{name}.log")
    if shares:
        packages = home / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", "-r", str(requirements)]
    _run([str(python), *install], folder / f"{name}.log")
    stamp.write_text(wanted)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The version of Python and of those of `packages` that are installed."""
    command = [str(python), "-c", _VERSIONS, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def with_exporter() -> dict[str, str]:
    """The environment variables under which a Python finds `tritonclip_export`."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT / "export")}


def last_lines(log: Path) -> str:
    """The end of a log, for an error."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return "\n".join(text.splitlines()[-LAST_LINES:])


def without(text: str, work: Path) -> str:
    """`text` with no folder of this machine in it."""
    return text.replace(str(work.absolute()), "WORK").replace(str(CHECKOUT), "CHECKOUT").replace(sys.prefix, "VENV")


def _run(command: Sequence[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        try:
            status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            raise SideError(f"the installation took more than {INSTALL_S} s; see {log}") from None
    if status.returncode:
        raise SideError(f"the installation failed; {log} ends with:\n{last_lines(log)}")
