"""Finds a tritonserver: the one inside the `nvidia-pytriton` wheel, or the one on PATH."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tritonclip_export.settings import EMBEDDED_RELEASE
from tritonclip_serve.errors import EnvironmentFaultError, ServerNotFoundError

INSTALL_HINT = "to install the embedded one, run `pip install '.[serve]'` in a clone of tritonclip"
CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started.

    Attributes:
        executable: the program.
        description: one phrase for people.
        arguments: flags that this installation needs beside the common ones.
        environment: variables to set on top of the caller's.
        backends: names of the backends that it has; None where they could not be listed.
        release: YY.MM, where it is known.
    """

    executable: Path
    description: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    backends: frozenset[str] | None = None
    release: str | None = None


def find_server(kind: str, run_dir: Path) -> Installation:
    """Find a server and lay out in `run_dir` what it needs.

    Args:
        kind: `embedded` (the wheel's), `path` (on PATH, or where NVIDIA's container has it), or `auto`: the
            first of them that there is.
        run_dir: an existing folder that lives as long as the server.

    Raises:
        ServerNotFoundError: there is none.
        EnvironmentFaultError: this Python cannot be the embedded server's Python.
    """
    if kind not in _KINDS:
        raise ServerNotFoundError(f"server {kind!r} is unknown; give one of: {', '.join(_KINDS)}")
    for find in _KINDS[kind]:
        installation = find(run_dir)
        if installation is not None:
            return installation
    raise ServerNotFoundError(f"no tritonserver found ({_LOOKED_IN[kind]}); {INSTALL_HINT}")


def check_numpy(installed: str) -> None:
    """Refuse a numpy with which BYTES inputs reach the Python backend corrupted.

    Raises:
        EnvironmentFaultError: `installed` is 2.0 or later.
    """
    if int(installed.split(".")[0]) >= 2:
        raise EnvironmentFaultError(
            f"numpy {installed} is installed, and the embedded tritonserver needs numpy < 2: with numpy 2 texts and "
            "images reach its models corrupted; run: pip install 'numpy<2'"
        )


def _embedded(run_dir: Path) -> Installation | None:
    package = _package_folder()
    if package is None:
        return None
    _check_python(package)
    server = package / "tritonserver"
    return Installation(
        executable=server / "bin" / "tritonserver",
        description=f"the embedded tritonserver of nvidia-pytriton {version('nvidia-pytriton')}",
        arguments=(
            f"--backend-directory={_lay_out_backends(server, run_dir)}",
            f"--cache-directory={server / 'caches'}",
            "--allow-gpu-metrics=false",
        ),
        environment=_embedded_environment(package),
        backends=frozenset({"python"}),
        release=EMBEDDED_RELEASE,
    )


def _on_path(run_dir: Path) -> Installation | None:
    del run_dir  # a full installation brings its own backends
    found = shutil.which("tritonserver") or shutil.which(CONTAINER_BINARY)
    if found is None:
        return None
    folder = Path(found).resolve().parents[1] / "backends"
    return Installation(
        Path(found),
        f"the tritonserver at {found}",
        backends=frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else None,
        # Set by NVIDIA's images.
        release=os.environ.get("NVIDIA_TRITON_SERVER_VERSION"),
    )


_KINDS: dict[str, tuple[Callable[[Path], Installation | None], ...]] = {
    "auto": (_embedded, _on_path),
    "embedded": (_embedded,),
    "path": (_on_path,),
}
SERVER_KINDS = tuple(_KINDS)
_LOOKED_IN = {
    "auto": f"neither the package nvidia-pytriton, nor `tritonserver` on PATH, nor {CONTAINER_BINARY}",
    "embedded": "the package nvidia-pytriton is not installed",
    "path": f"neither `tritonserver` on PATH nor {CONTAINER_BINARY}",
}


def _package_folder() -> Path | None:
    # Looked up, not imported: importing pytriton takes seconds.
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder if (folder / "tritonserver" / "bin" / "tritonserver").is_file() else None


def _check_python(package: Path) -> None:
    try:
        check_numpy(version("numpy"))
    except PackageNotFoundError as error:
        raise EnvironmentFaultError(f"numpy is not installed; {INSTALL_HINT}") from error
    stubs = package / "tritonserver" / "python_backend_stubs"
    if not (stubs / _PYTHON / _STUB).is_file():
        known = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise EnvironmentFaultError(f"the embedded tritonserver has no stub for Python {_PYTHON}, only for: {known}")
    if not _has_shared_libpython():
        raise EnvironmentFaultError(
            f"this Python {_PYTHON} has no libpython{_PYTHON}.so.1.0, which the server's Python backend loads; use a "
            f"Python built with --enable-shared, or run: apt-get install libpython{_PYTHON}"
        )


def _has_shared_libpython() -> bool:
    name = f"libpython{_PYTHON}.so.1.0"
    return any((folder / name).is_file() for folder in _libpython_folders()) or bool(
        ctypes.util.find_library(f"python{_PYTHON}")
    )


def _libpython_folders() -> tuple[Path, ...]:
    configured = sysconfig.get_config_var("LIBDIR")
    folders = (Path(configured),) if configured else ()
    return (*folders, Path(sys.base_prefix) / "lib")


def _lay_out_backends(server: Path, run_dir: Path) -> Path:
    """Put the Python backend and the stub of this interpreter into one folder, as Triton looks for them."""
    backends = run_dir / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for source in (server / "backends" / "python").iterdir():
        if source.is_file():
            (python / source.name).symlink_to(source)
    (python / _STUB).symlink_to(server / "python_backend_stubs" / _PYTHON / _STUB)
    return backends


def _embedded_environment(package: Path) -> dict[str, str]:
    libraries = (package.parent / "nvidia_pytriton.libs", *_libpython_folders())
    interpreter = Path(sys.executable).parent
    return {
        "LD_LIBRARY_PATH": _prepend(libraries, os.environ.get("LD_LIBRARY_PATH")),
        # The stub finds its packages through the first python on PATH, and ignores PYTHONPATH on 3.11.
        "PATH": _prepend((interpreter,), os.environ.get("PATH")),
    }


def _prepend(folders: tuple[Path, ...], present: str | None) -> str:
    return os.pathsep.join([*map(str, folders), *([present] if present else [])])
