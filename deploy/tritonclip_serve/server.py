"""A tritonserver as a context manager: the processes, the ports, the log, and the proof that it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tritonclip_serve import readiness
from tritonclip_serve.arguments import Endpoints, command_line
from tritonclip_serve.errors import NotReadyError, ServeError
from tritonclip_serve.fit import check_fit
from tritonclip_serve.installation import find_server
from tritonclip_serve.ports import claim_ports, is_listening
from tritonclip_serve.process import end, remove_shared_memory, spawn
from tritonclip_serve.repository import check_repository, model_names
from tritonclip_serve.verified import ALL, lay_out
from tritonclip_serve.watch import Progress, StartupWatch, explain_end

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 30.0
# A server that never answered has nothing in flight to wait for.
_GRACE_BEFORE_READY_S = 5.0


class TritonServer:
    """A tritonserver that serves one model repository.

        with TritonServer(Path("repository"), grpc_port=0, http_port=0, metrics_port=0) as server:
            ClipClient(server.grpc_address)

    Entering starts it and waits until it embeds; leaving stops it with everything that it started. The server also
    ends when the thread that started it ends, however that comes about (Linux; a killed caller leaves nothing but a
    folder of code and links in the temporary directory).

    Args:
        repository: what `tritonclip export` wrote.
        host: IPv4 address or host name to listen on. The server has no authentication.
        grpc_port, http_port, metrics_port: 0 takes any free port.
        log_path: where the server's output goes; by default beside the repository, `NAME.tritonserver-GRPC_PORT.log`.
        server: `embedded`, `path` or `auto`, see `find_server`.
        verify: what is compared with the manifest before anything starts: `all` or `code`, see `lay_out`.
        verify_key: minisign's public key, or a file with it, by which the manifest must be signed.
        extra_args: further flags for tritonserver; the last one given wins.
        startup_timeout_s: how long `wait_ready` waits.
        stop_grace_s: how long `stop` lets requests in flight and models end before it kills them.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        log_path: Path | None = None,
        server: str = "auto",
        verify: str = ALL,
        verify_key: str | None = None,
        extra_args: Sequence[str] = (),
        startup_timeout_s: float = 120.0,
        stop_grace_s: float = 20.0,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.description = ""
        self._endpoints = Endpoints(host, grpc=grpc_port, http=http_port, metrics=metrics_port)
        self._server = server
        self._verify = verify
        self._verify_key = verify_key
        self._log_path = Path(log_path).absolute() if log_path else None
        self._extra_args = tuple(extra_args)
        self._startup_timeout_s = startup_timeout_s
        self._stop_grace_s = stop_grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir: Path | None = None
        self._started_at = 0.0
        self._ready = False

    def __enter__(self) -> TritonServer:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def grpc_address(self) -> str:
        """`host:port` of the gRPC endpoint, as a client on this machine reaches it."""
        return self._endpoints.address("grpc")

    @property
    def http_address(self) -> str:
        """`host:port` of the HTTP endpoint."""
        return self._endpoints.address("http")

    @property
    def metrics_address(self) -> str:
        """`host:port` of the Prometheus metrics."""
        return self._endpoints.address("metrics")

    @property
    def log_path(self) -> Path:
        """The file with the server's output; its default is final once `start` has chosen the ports."""
        return self._log_path or default_log_path(self.repository, self._endpoints.grpc)

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver, and of its process group; None before `start` and after `stop`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the processes; returns at once.

        Raises:
            RepositoryError, ServerNotFoundError, EnvironmentFaultError, AddressError, LogFileError: nothing was
                started.
        """
        if self._process is not None:
            raise ServeError(f"this server is running already (process {self.pid}); stop it first")
        check_repository(self.repository)
        try:
            self._start(Path(tempfile.mkdtemp(prefix="tritonclip_")))
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, on_progress: Progress | None = None) -> float:
        """Wait until a real embedding of a picture and of a text comes back.

        Args:
            on_progress: called with a short phrase whenever there is news, such as "3 of 8 models loaded".

        Returns:
            Seconds since `start`.

        Raises:
            ModelLoadError: a model did not load.
            ServerDiedError: the server ended for another reason.
            NotReadyError: it answers, but not with embeddings, or not in time.
        """
        probes = readiness.read_probes(self.repository)
        watch = StartupWatch(self.log_path, model_names(self.repository), on_progress)
        deadline = self._started_at + self._startup_timeout_s
        last = None
        while (left_s := deadline - time.monotonic()) > 0:
            self._check_alive()
            watch.look()
            last = self._ask(probes, left_s)
            if last is None:
                self._ready = True
                return time.monotonic() - self._started_at
            time.sleep(_POLL_S)
        raise NotReadyError(
            f"no embedding came back within {self._startup_timeout_s:g} s ({last}{watch.missing()}); give more time, "
            f"or see {self.log_path}"
        )

    def wait(self) -> None:
        """Wait until the server ends by itself, which it should not.

        Raises:
            ServerDiedError: always, when it has ended.
        """
        while True:
            self._check_alive()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the server and everything that it started; does nothing where nothing runs."""
        process, run_dir = self._process, self._run_dir
        self._process = self._run_dir = None
        if process is not None:
            end(process, self._stop_grace_s if self._ready else min(self._stop_grace_s, _GRACE_BEFORE_READY_S))
            self._ready = False
        if run_dir is not None:
            remove_shared_memory(_shared_memory_prefix(run_dir))
            shutil.rmtree(run_dir, ignore_errors=True)

    def _start(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        served = lay_out(self.repository, run_dir / "models", level=self._verify, key=self._verify_key)
        installation = find_server(self._server, run_dir)
        check_fit(self.repository, installation, served)
        self._endpoints = self._claim_endpoints()
        self.description = installation.description
        command = command_line(installation, served, self._endpoints, _shared_memory_prefix(run_dir))
        environment = {**os.environ, **installation.environment}
        self._started_at = time.monotonic()
        self._process = spawn([*command, *self._extra_args], environment, self.log_path)

    def _claim_endpoints(self) -> Endpoints:
        wanted = self._endpoints
        flags = {"--grpc-port": wanted.grpc, "--http-port": wanted.http, "--metrics-port": wanted.metrics}
        grpc, http, metrics = claim_ports(wanted.host, flags).values()
        return Endpoints(wanted.host, grpc=grpc, http=http, metrics=metrics)

    def _ask(self, probes: tuple[readiness.Probe, ...], left_s: float) -> str | None:
        """Why no embedding comes back yet; None when it does."""
        if not is_listening(*self._endpoints.connectable("grpc")):
            return "its gRPC port is not open yet"
        try:
            readiness.ask(self.grpc_address, probes, min(_PROBE_TIMEOUT_S, left_s))
        except readiness.StillStartingError as error:
            return str(error)
        return None

    def _check_alive(self) -> None:
        if self._process is None:
            raise ServeError("this server is not running; call start() first")
        status = self._process.poll()
        if status is not None:
            raise explain_end(status, self.log_path)


def default_log_path(repository: Path, grpc_port: int) -> Path:
    """Beside the repository, which stays as it was exported; where that is read-only, the temporary directory.

    The port keeps apart two servers of one repository.
    """
    parent = repository.parent if os.access(repository.parent, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"{repository.name}.tritonserver-{grpc_port}.log"


def _shared_memory_prefix(run_dir: Path) -> str:
    return f"{run_dir.name}-"
