"""What a server is given: the files that the manifest lists, once they were compared with it, and no others.

Code and configs are copied, so that what was compared is what runs, whatever happens to the repository meanwhile: also
when a model is loaded again. Python's caches are written and looked for beside the copies, never in the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tritonclip_export.errors import ExportError
from tritonclip_export.repository.manifest import ALL, CODE, LEVELS, save, verify
from tritonclip_export.repository.tree import LARGE, is_executed
from tritonclip_serve.errors import RepositoryError

__all__ = ["ALL", "CODE", "LEVELS", "NONE", "lay_out"]

# For a copy that was made here of what was compared before: it is served as it stands.
NONE = "none"
# A graph goes the way of its weights: ONNX Runtime reads none through a link that leads out of the graph's own folder.
_GRAPH = ".onnx"
_ENGINE = ".plan"


def lay_out(repository: Path, target: Path, *, level: str = ALL, key: str | None = None) -> Path:
    """Compare `repository` with its manifest and lay out at `target` what a server may read; returns where that is.

    Args:
        target: a folder for it alone, which is made anew; weights in it are links to those of the repository.
        level: `all` or `code`, see `tritonclip_export.repository.manifest.verify`; or NONE.
        key: of whoever must have signed the manifest.

    Raises:
        RepositoryError: it is not what was exported, or not signed by `key`; or cannot be laid out.
    """
    if level == NONE and key is None:
        return repository
    try:
        shutil.rmtree(target, ignore_errors=True)
        manifest = verify(repository, level=level, key=key)
        for name, digest in manifest["files"].items():
            _put(repository / name, target / name, digest)
        save(target, manifest)
    except ExportError as error:
        raise RepositoryError(str(error)) from error
    except OSError as error:
        raise RepositoryError(
            f"the code and configs of {repository} cannot be copied to {target} ({error}); free space there, or set "
            "TMPDIR to another folder"
        ) from error
    return target


def _put(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_linked(source):
        target.symlink_to(Path(os.path.realpath(source)))
        return
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise RepositoryError(f"{source} was changed while it was read; start again once nobody changes it")
    target.write_bytes(content)


def _is_linked(path: Path) -> bool:
    if _GRAPH in path.name or _ENGINE in path.name:
        return True
    return path.stat().st_size >= LARGE and not is_executed(path.name)
