"""The sides of the comparison: how each is started, asked and measured."""

from __future__ import annotations

import http.client
import os
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import environments, http_api
from baselines.environments import HERE, SideError, last_lines
from baselines.http_api import Floats, Request
from baselines.material import Material
from baselines.patterns import Pattern
from tritonclip_bench.errors import WrongAnswerError
from tritonclip_bench.load.loadrun import LoadPlan, run_load
from tritonclip_client import ClipClient
from tritonclip_serve import TritonServer
from tritonclip_serve.log import ServerLog
from tritonclip_serve.ports import claim_ports
from tritonclip_serve.process import end, spawn

HOST = "127.0.0.1"
READY_S = 180.0
GRACE_S = 10.0
DEADLINE_S = 30
HTTP_LOCUSTFILE = HERE / "http_locustfile.py"
TRITONCLIP_PACKAGES = (
    "nvidia-pytriton",
    "onnxruntime",
    "numpy",
    "simplejpeg",
    "cykooz-resizer",
    "tokenizers",
    "grpcio",
)
TORCH_PACKAGES = ("torch", "torchvision", "open_clip_torch", "Pillow", "numpy")
HTTP_PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "python-multipart")
INFINITY_PACKAGES = ("infinity-emb", "torch", "transformers", "tokenizers", "Pillow", "numpy", *HTTP_PACKAGES)


@dataclass(frozen=True)
class Load:
    """One measurement.

    Attributes:
        scenario: image or text.
        seconds, warmup_s: measured, and before that.
        seed: where the texts start.
    """

    scenario: str
    pattern: Pattern
    seconds: int
    warmup_s: int
    seed: int

    def plan(self, address: str, images: Path | None) -> LoadPlan:
        """The same for the load generator."""
        return LoadPlan(
            address=address,
            scenario=self.scenario,
            users=self.pattern.clients,
            duration_s=self.seconds,
            warmup_s=self.warmup_s,
            deadline_s=DEADLINE_S,
            batch_size=self.pattern.batch,
            labels=1,
            seed=self.seed,
            repeat_texts=False,
            images=images,
        )


class Side(ABC):
    """One way to embed; a context, inside which it runs.

    Attributes:
        what: it is, for people.
        command: that starts it, without anybody's folders; empty where there is nothing to start.
        versions: of its packages.
    """

    what = ""
    command = ""
    versions: dict[str, str]

    @abstractmethod
    def __enter__(self) -> Side: ...

    def __exit__(self, *_: object) -> None:  # noqa: B027 - most have nothing to end
        pass

    @abstractmethod
    def embed_images(self, images: Sequence[bytes]) -> Floats:
        """float32 [N, D]."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """float32 [N, D]."""

    @abstractmethod
    def measure(self, load: Load) -> dict[str, Any]:
        """`Recorder.results` of one window, with what the images were."""


class Tritonclip(Side):
    """The exported repository on a real tritonserver."""

    what = "tritonclip on tritonserver, over gRPC"
    command = "tritonclip serve REPOSITORY"

    def __init__(self, material: Material) -> None:
        self._material = material
        self.versions = environments.versions(Path(sys.executable), TRITONCLIP_PACKAGES)
        self._open = ExitStack()

    def __enter__(self) -> Side:
        log = self._material.folder / "tritonserver.log"
        server = TritonServer(self._material.repository, grpc_port=0, metrics_port=0, log_path=log)
        self.address = self._open.enter_context(server).grpc_address
        self._client = self._open.enter_context(ClipClient(self.address))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def embed_images(self, images: Sequence[bytes]) -> Floats:
        """See `Side`."""
        return self._client.embed_images(list(images))

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Side`."""
        return self._client.embed_texts(list(texts))

    def measure(self, load: Load) -> dict[str, Any]:
        """See `Side`."""
        return run_load(load.plan(self.address, self._material.image_files), progress=False)


class HttpServer(Side):
    """A server that speaks one of `http_api.APIS`.

    Args:
        arguments: of the command, given the port.
        variables: of its environment.
        log: where its output goes.
        images: the folder of what is sent.
    """

    def __init__(
        self,
        what: str,
        api: str,
        arguments: Callable[[int], Sequence[str]],
        variables: dict[str, str],
        versions: dict[str, str],
        log: Path,
        material: Material,
        dim: int,
    ) -> None:
        self.what = what
        self.versions = versions
        self._api = api
        self._arguments = arguments
        self._variables = variables
        self._log = log
        self._material = material
        self._dim = dim
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Side:
        self._port = claim_ports(HOST, {"--port": 0})["--port"]
        command = self._arguments(self._port)
        self.command = without_folders(command, self._material)
        self._process = spawn(command, self._variables, ServerLog(self._log))
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            end(self._process, GRACE_S)
            self._process = None

    def embed_images(self, images: Sequence[bytes]) -> Floats:
        """See `Side`."""
        return self._ask(http_api.APIS[self._api].images(images))

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Side`."""
        return self._ask(http_api.APIS[self._api].texts(texts))

    def measure(self, load: Load) -> dict[str, Any]:
        """See `Side`."""
        assert self._process is not None
        plan = load.plan(f"http://{HOST}:{self._port}", self._material.image_files)
        more = ("--api", self._api, "--dim", str(self._dim), "--server-pid", str(self._process.pid))
        results = run_load(plan, progress=False, locustfile=HTTP_LOCUSTFILE, more=more)
        if self._process.poll() is not None:
            raise SideError(f"the server has ended; {self._log} ends with:\n{last_lines(self._log)}")
        return results

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Until a text and an image come back embedded."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SideError(f"the server ended with status {process.returncode}:\n{last_lines(self._log)}")
            try:
                self.embed_texts(["ready"])
                self.embed_images(self._material.images.encoded[:1])
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise SideError(f"no answer within {READY_S:.0f} s; {self._log} ends with:\n{last_lines(self._log)}")

    def _ask(self, request: Request) -> Floats:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=DEADLINE_S)
        try:
            connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise WrongAnswerError(f"HTTP {response.status}: {answer[:500].decode(errors='replace')}")
        return http_api.embeddings(answer)


def fastapi(material: Material, folder: Path, dim: int, max_batch: int) -> Side:
    """open_clip behind FastAPI; with a `max_batch` above 1 waiting requests are joined."""
    python = environments.make("fastapi", folder, shares=True)

    def arguments(port: int) -> list[str]:
        script = [str(python), str(HERE / "fastapi_server.py"), str(material.open_clip)]
        return [*script, "--port", str(port), "--max-batch", str(max_batch)]

    return HttpServer(
        "PyTorch open_clip behind FastAPI" + (f", joining requests to {max_batch} items" if max_batch > 1 else ""),
        "fastapi",
        arguments,
        environments.with_exporter(),
        environments.versions(python, (*TORCH_PACKAGES, *HTTP_PACKAGES)),
        material.folder / f"fastapi-{max_batch}.log",
        material,
        dim,
    )


def infinity(material: Material, folder: Path, dim: int) -> Side:
    """infinity with the same weights in transformers' form."""
    hf = material.hf
    python = environments.make("infinity", folder, shares=False)

    def arguments(port: int) -> list[str]:
        model = ["--model-id", str(hf), "--served-model-name", http_api.MODEL, "--engine", "torch", "--device", "cpu"]
        how = ["--dtype", "float32", "--batch-size", "16", "--no-model-warmup", "--log-level", "warning"]
        return [str(python.with_name("infinity_emb")), "v2", *model, *how, "--host", HOST, "--port", str(port)]

    return HttpServer(
        "infinity, PyTorch and transformers",
        "infinity",
        arguments,
        {**os.environ, "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"},
        environments.versions(python, INFINITY_PACKAGES),
        material.folder / "infinity.log",
        material,
        dim,
    )


def without_folders(command: Sequence[str], material: Material) -> str:
    """A command as somebody else would type it."""
    replaced = {str(HERE): "benchmarks/baselines", str(material.checkpoint): "CHECKPOINT"}
    words = [Path(command[0]).name, *command[1:]]
    for path, name in replaced.items():
        words = [word.replace(path, name) for word in words]
    return shlex.join(words)
