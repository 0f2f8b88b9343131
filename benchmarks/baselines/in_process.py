"""ONNX Runtime in this process, without any server."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from baselines import environments
from baselines.environments import SideError
from baselines.http_api import Floats
from baselines.material import Material
from baselines.patterns import Pattern
from baselines.sides import TORCH_PACKAGES, TRITONCLIP_PACKAGES, Load, Side
from tritonclip_bench import inprocess
from tritonclip_bench.inprocess import InProcess
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.traffic.captions import captions


class InThisProcess(Side):
    """Batches one after the other, on all cores."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self.versions = environments.versions(Path(sys.executable), (*TRITONCLIP_PACKAGES, *TORCH_PACKAGES))

    def __enter__(self) -> Side:
        return self

    def _images(self, batch: int) -> InProcess[bytes]:
        raise NotImplementedError

    def _texts(self, batch: int, seed: int) -> InProcess[str]:
        raise NotImplementedError

    def _steps(self, load: Load) -> Iterator[int]:
        """ONNX Runtime's threads spin, as they do unless told otherwise."""
        return self._loop(load).sequential(spinning=True)

    def _loop(self, load: Load) -> InProcess[Any]:
        batch = load.pattern.batch
        return self._images(batch) if load.scenario == "image" else self._texts(batch, load.seed)

    def embed_images(self, images: Sequence[bytes]) -> Floats:
        """See `Side`."""
        return self._images(len(images)).embed(images)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Side`."""
        return self._texts(len(texts), 0).embed(texts)

    def measure(self, load: Load) -> dict[str, Any]:
        """See `Side`; the work is this process's own, so it counts as the server's."""
        results = measure_loop(self._steps(load), f"embed_{load.scenario}", load.warmup_s, load.seconds)
        cores = results["client_cpu_cores"]
        told = {"images": self._material.images.describe(), "stages": {}, "open_loop": {}, "broken": None}
        nobody = {"client_cpu_cores": 0.0, "client_cpu_cores_total": 0.0, "client_processes": 0}
        return {**results, **told, **nobody, "server_cpu_cores": cores}


class OpenClipTransform(InThisProcess):
    """What people write: open_clip's own transform and tokenizer, then the graph.

    The graph is tritonclip's, which takes uint8: the transform's last two steps, ToTensor and Normalize, are in it.
    They cost less there, which favors this baseline.
    """

    what = "ONNX Runtime in one process, open_clip's own transform and tokenizer, no server"

    def __enter__(self) -> Side:
        from tritonclip_export.frameworks import open_clip

        config = json.loads((self._material.open_clip / "open_clip_config.json").read_text())
        settings = open_clip.transform.PreprocessCfg(**config["preprocess_cfg"])
        transform = open_clip.transform.image_transform_v2(settings, is_train=False)
        names = [type(step).__name__ for step in transform.transforms]
        if not names[-2].endswith("ToTensor") or names[-1] != "Normalize":
            raise SideError(f"open_clip's transform is {', '.join(names)}; it should end with ToTensor and Normalize")
        self._to_rgb = transform.transforms[:-2]
        self._tokenizer = open_clip.get_tokenizer(f"local-dir:{self._material.open_clip}")
        return self

    def _images(self, batch: int) -> InProcess[bytes]:
        graph = inprocess.image_graph(self._material.repository)
        return InProcess(self._prepare, graph, itertools.cycle(self._material.images.encoded), batch)

    def _texts(self, batch: int, seed: int) -> InProcess[str]:
        def prepare(texts: Sequence[str]) -> Any:
            return self._tokenizer(list(texts)).numpy().astype(np.int32)

        return InProcess(prepare, inprocess.text_graph(self._material.repository), captions(seed), batch)

    def _prepare(self, encoded: Sequence[bytes]) -> Any:
        prepared = []
        for one in encoded:
            image: Any = Image.open(io.BytesIO(one))
            for step in self._to_rgb:
                image = step(image)
            prepared.append(np.asarray(image))
        return np.stack(prepared)


class Ceiling(InThisProcess):
    """Not a peer: the repository's own preparation and graphs, which no server can beat but by more processes."""

    what = "the strict ceiling: tritonclip's own preparation and graphs in one process, no server"

    def _images(self, batch: int) -> InProcess[bytes]:
        return inprocess.of_images(self._material.repository, self._material.images, batch)

    def _texts(self, batch: int, seed: int) -> InProcess[str]:
        return inprocess.of_texts(self._material.repository, captions(seed), batch)

    def _steps(self, load: Load) -> Iterator[int]:
        """Images in batches are prepared while others are embedded; for the rest there is nothing to gain by it."""
        if load.scenario == "image" and load.pattern != Pattern(1, 1):
            return self._loop(load).overlapped()
        return super()._steps(load)


def measure_loop(steps: Iterator[int], model: str, warmup_s: float, seconds: float) -> dict[str, Any]:
    """`Recorder.results` of a loop that yields how many items each step did."""
    warm = time.perf_counter() + warmup_s
    next(steps)
    while time.perf_counter() < warm:
        next(steps)
    recorder = Recorder()
    recorder.begin()
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        items = next(steps)
        recorder.add(model, (time.perf_counter() - begun) * 1000, items, None)
    recorder.end()
    results: dict[str, Any] = recorder.results() or {}
    return results
