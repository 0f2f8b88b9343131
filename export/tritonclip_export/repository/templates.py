"""Where the checked-in model repository is."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.errors import RepositoryError


def templates() -> Path:
    """The checked-in `model_repository/`: of the source tree, or the copy inside an installed package.

    Raises:
        RepositoryError: there is neither.
    """
    here = Path(__file__).resolve()
    candidates = (here.parents[3] / "model_repository", here.parents[1] / "_model_repository")
    for folder in candidates:
        if (folder / "clip" / "config.pbtxt").is_file():
            return folder
    raise RepositoryError(f"tritonclip is installed without its model_repository (looked in {candidates})")
