"""Changes a repository in child processes that are killed (SIGKILL) at their n-th rename, for every n there is.

    python killed_change.py REPOSITORY WHAT

Prints one JSON line per n: whether the change had ended, whether the repository still passed, what stood beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tritonclip_client.main import main
from tritonclip_export.errors import ExportError
from tritonclip_export.repository.in_place import commit, staged_beside
from tritonclip_export.repository.manifest import file_hashes, read_manifest, save, verify
from tritonclip_export.repository.staging import claimed, unique
from tritonclip_export.repository.write import _replace, check_output


def dali(repository: Path) -> None:
    """Files and a folder more, and configs changed."""
    assert main(["configure", str(repository), "--preprocess", "dali"]) == 0


def folders(repository: Path) -> None:
    """A folder takes the place of one, and another goes."""
    with staged_beside(repository, "classifier") as staging:
        shutil.copytree(repository / "similarity", staging / "similarity")
        (staging / "similarity" / "1" / "more.py").touch()
        manifest = read_manifest(repository)
        kept = {name: digest for name, digest in manifest["files"].items() if not name.startswith("split_text/")}
        save(staging, {**manifest, "files": {**kept, **file_hashes(staging)}})
        commit(staging, repository, ["similarity"], ["split_text"])


def export(repository: Path) -> None:
    """Another repository takes its place."""
    with claimed(repository.parent / f".{repository.name}.partial-{unique()}") as staging:
        shutil.copytree(repository, staging, dirs_exist_ok=True)
        save(staging, {**read_manifest(staging), "created": "later"})
        _replace(staging, repository)


CHANGES: dict[str, Callable[[Path], None]] = {"dali": dali, "folders": folders, "export": export}


def killed_at(step: int) -> None:
    left = [step]
    for name in ("rename", "replace"):
        setattr(Path, name, _counting(getattr(Path, name), left))


def _counting(real: Callable[..., Path], left: list[int]) -> Callable[..., Path]:
    def counting(*given: Path) -> Path:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*given)

    return counting


def content(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def one(original: Path, what: str, step: int) -> bool:
    """True once the change ends before it is killed."""
    repository = shutil.copytree(original, original.parent / "copy" / "repository")
    before = content(repository)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        killed_at(step)
        CHANGES[what](repository)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = {"killed": os.WIFSIGNALED(status), "passes": passes(repository)}
    found["left"] = len([path for path in repository.parent.iterdir() if path.name.startswith(".")])
    try:
        # What `export` does first, and `configure` with and without a change.
        check_output(repository, force=False)
    except ExportError as refusal:
        found["refusal"] = str(refusal)
    found["passes_again"], found["undone"] = passes(repository), content(repository) == before
    found["beside"] = [path.name for path in repository.parent.iterdir() if path != repository]
    found["empty"] = [str(path) for path in repository.rglob("*") if path.is_dir() and not any(path.iterdir())]
    shutil.rmtree(repository.parent)
    print(json.dumps(found), flush=True)
    return not found["killed"]


def passes(repository: Path) -> bool:
    try:
        verify(repository, level="code")
    except ExportError:
        return False
    return True


if __name__ == "__main__":
    original, step = Path(sys.argv[1]), 0
    while not one(original, sys.argv[2], step):
        step += 1
