"""The exported DALI pipeline on a CPU: the file that the DALI backend reads, with "cpu" in place of "mixed"."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritonclip_export.repository.dali import dali_files
from tritonclip_export.settings import Settings
from tritonclip_export.spec import ImageSpec

ROOT = Path(__file__).parents[2]
REQUIREMENT = "nvidia-dali-cuda130==2.4.0"
SITE = ROOT / "work" / REQUIREMENT

Pipeline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def dali_site() -> Path:
    """Where DALI is installed: in this environment, or below work/; skips where it cannot be fetched."""
    if importlib.util.find_spec("nvidia") and (installed := importlib.util.find_spec("nvidia.dali")):
        return Path(installed.origin).parents[2]
    if not SITE.is_dir():
        staging = SITE.with_name(f".{SITE.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile"]
        command += ["-c", str(ROOT / "constraints.txt"), "--target", str(staging), REQUIREMENT, "numpy<2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{REQUIREMENT} is not in {SITE} and could not be fetched: {done.stderr.strip()[-200:]}")
        staging.rename(SITE)
    return SITE


def reach(site: Path) -> None:
    """Let DALI be imported from `site`, behind what is installed, also where that has other packages of NVIDIA."""
    if str(site) not in sys.path:
        sys.path.append(str(site))
    import nvidia

    if str(site / "nvidia") not in list(nvidia.__path__):
        nvidia.__path__.append(str(site / "nvidia"))


def load(file: Path) -> Any:
    """The module `dali.py`, anew."""
    spec = importlib.util.spec_from_file_location(f"dali_{abs(hash(file))}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, settings: Any) -> Path:
    """`dali.py` and its JSON, as an export for `settings` (of `clip_settings`) writes them."""
    image = ImageSpec(
        *(settings.height, settings.width, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        *(settings.interpolation, settings.resize_mode, settings.fill_color, settings.crop_offset),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in dali_files(image, Settings()).items():
        if path.startswith("preprocess_dali/1/"):
            (folder / Path(path).name).write_bytes(content)
    return folder / "dali.py"


def on_cpu(file: Path) -> Pipeline:
    """Files and steps, as `clip_dali.pack` makes them, to pixels."""
    pipeline = load(file).preprocess_dali(device="cpu", device_id=None, prefetch_queue_depth=1)
    pipeline.build()

    def run(files: np.ndarray, steps: np.ndarray) -> np.ndarray:
        pipeline.feed_input("encoded", files)
        pipeline.feed_input("steps", steps)
        return np.array(pipeline.run()[0].as_array())

    return run
