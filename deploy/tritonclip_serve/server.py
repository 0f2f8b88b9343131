"""A tritonserver as a context manager: the processes, the ports, the log, and the proof that it answers."""

from __future__ import annotations

import math
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tritonclip_serve import argv, connections, diagnosis, readiness
from tritonclip_serve.arguments import command_line, control_headers
from tritonclip_serve.die_with_parent import SECRET
from tritonclip_serve.edge.access import Access
from tritonclip_serve.edge.endpoints import Endpoints, check_exposure
from tritonclip_serve.edge.pages import Reports
from tritonclip_serve.edge.server import Edge, start_edge
from tritonclip_serve.edge.tls import ServerTls
from tritonclip_serve.environment import raise_file_limit, server_variables
from tritonclip_serve.errors import NotReadyError, ServeError
from tritonclip_serve.fit import check_fit
from tritonclip_serve.installation import find_server
from tritonclip_serve.log import DEFAULT_MAX_BYTES, ServerLog
from tritonclip_serve.ports import is_listening
from tritonclip_serve.process import end, kill_group, spawn
from tritonclip_serve.repository import check_repository, model_names
from tritonclip_serve.runs import RunFolder
from tritonclip_serve.verified import ALL, CODE, lay_out
from tritonclip_serve.watch import Progress, StartupWatch, explain_end

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 30.0
# A server that never answered has nothing in flight to wait for.
_GRACE_BEFORE_READY_S = 5.0
# Of `stop_grace_s`, what models get to end after the last answer.
_UNLOAD_S = 2.0


class TritonServer:
    """A tritonserver that serves one model repository.

        with TritonServer(Path("repository"), grpc_port=0, metrics_port=0) as server:
            ClipClient(server.grpc_address)

    Entering starts it and waits until it embeds; leaving stops it with everything that it started. The server also
    ends when the thread that started it ends, however that comes about (Linux; a killed caller leaves a folder in the
    temporary directory, which the next `tritonclip serve` removes). It may be started again after `stop`, on the same
    ports. Models are under explicit control: who has `control_headers` may unload and load them.

    Args:
        repository: what `tritonclip export` wrote.
        host: IPv4 address or host name to listen on.
        grpc_port, metrics_port: 0 takes any free port.
        http_port: of inference over HTTP, which is off where it is None.
        tls: encrypts every port, and may ask callers for certificates.
        insecure: allows a host beyond loopback without `tls`.
        log_path: where the server's output goes; by default beside the repository, `NAME.tritonserver-GRPC_PORT.log`.
        log_max_bytes: what `cap_log` leaves of it.
        server: `embedded`, `path` or `auto`, see `find_server`.
        verify: what is compared with the manifest before anything starts: `all` or `code`, see `lay_out`.
        verify_key: minisign's public key, or a file with it, by which the manifest must be signed.
        extra_args: further flags for tritonserver; the last one given wins.
        startup_timeout_s: how long `wait_ready` waits.
        stop_grace_s: how long `stop` lets requests in flight and models end before it kills them. New calls get
            UNAVAILABLE meanwhile.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int | None = None,
        metrics_port: int = 8002,
        tls: ServerTls | None = None,
        insecure: bool = False,
        log_path: Path | None = None,
        log_max_bytes: int = DEFAULT_MAX_BYTES,
        server: str = "auto",
        verify: str = ALL,
        verify_key: str | None = None,
        extra_args: Sequence[str] = (),
        startup_timeout_s: float = 120.0,
        stop_grace_s: float = 20.0,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.description = ""
        #: Whether the key to model control cannot be read in the server's arguments any more.
        self.key_is_hidden = False
        #: What the metrics port tells beside Triton's metrics; a supervisor fills it in.
        self.reports = Reports()
        self._endpoints = Endpoints(host, grpc=grpc_port, http=http_port, metrics=metrics_port)
        self._tls = tls
        self._insecure = insecure
        self._access = Access()
        self._edge: Edge | None = None
        self._server = server
        self._level = verify
        self._verify_key = verify_key
        self._log_path = Path(log_path).absolute() if log_path else None
        self._log_max_bytes = log_max_bytes
        self._log: ServerLog | None = None
        self._extra_args = tuple(extra_args)
        self._startup_timeout_s = startup_timeout_s
        self._stop_grace_s = stop_grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._run: RunFolder | None = None
        self._started_at = 0.0
        self._ready = False
        self._key = secrets.token_hex(16)

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
    def has_http(self) -> bool:
        """Whether inference is answered over HTTP, too."""
        return self._endpoints.http is not None

    @property
    def http_address(self) -> str:
        """`host:port` of inference over HTTP; AddressError where it is off."""
        return self._endpoints.address("http")

    @property
    def metrics_address(self) -> str:
        """`host:port` of the Prometheus metrics and the health pages."""
        return self._endpoints.address("metrics")

    @property
    def encryption(self) -> str:
        """How the ports are encrypted, as the end of a phrase."""
        if self._tls is None:
            return ""
        return ", TLS" if self._tls.client_ca is None else ", mutual TLS"

    @property
    def access(self) -> Access:
        """How this machine makes clients of the running server, under TLS too."""
        return self._access

    @property
    def log_path(self) -> Path:
        """The file with the server's output; its default is final once `start` has chosen the ports."""
        return self._log_path or default_log_path(self.repository, self._endpoints.grpc)

    @property
    def control_headers(self) -> dict[str, str]:
        """What a gRPC call carries that loads or unloads a model; keep it to this process."""
        return control_headers(self._key)

    @property
    def run_dir(self) -> Path | None:
        """The folder of this run, for the server's processes; None before `start` and after `stop`."""
        return self._run.path if self._run else None

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver, and of its process group; None before `start` and after `stop`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the processes; returns at once.

        Raises:
            RepositoryError, ServerNotFoundError, EnvironmentFaultError, AddressError, TlsFileError, LogFileError:
                nothing was started.
        """
        if self._process is not None:
            raise ServeError(f"this server is running already (process {self.pid}); stop it first")
        check_repository(self.repository)
        check_exposure(self._endpoints.host, self._tls is not None, self._insecure)
        if self._tls is not None:
            self._tls.check()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, on_progress: Progress | None = None) -> float:
        """Wait until a real embedding of an image and of a text comes back.

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
        watch = StartupWatch(self._server_log(), model_names(self.repository), on_progress)
        deadline = self._started_at + self._startup_timeout_s
        last = None
        while (left_s := deadline - time.monotonic()) > 0:
            self._check_alive()
            self._hide_key()
            self.close_shared_memory()
            watch.look()
            last = self._ask(probes, left_s)
            if last is None:
                self.close_shared_memory()
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

    @property
    def is_ready(self) -> bool:
        """Whether it has embedded something, and runs."""
        return self._ready and self.poll() is None

    def poll(self) -> int | None:
        """The exit status of a server that has ended (negative: the signal); None while it runs."""
        return self._process.poll() if self._process else None

    def cap_log(self) -> None:
        """Move the log away where it is longer than `log_max_bytes`."""
        self._server_log().cap()

    def close_shared_memory(self) -> None:
        """Close what models that were just loaded share with the server to other users of this machine."""
        if self._run is not None:
            self._run.close_segments()

    def cut_connections(self) -> int:
        """End the connections of all callers, whose lost calls would wait for their deadlines; how many there were.

        Raises:
            OSError: this is not allowed here.
        """
        if self._process is None:
            return 0
        return connections.cut(self._process.pid, self._endpoints.served())

    def last_words(self) -> str:
        """The line with which the server said why it ended, or the last one of its log."""
        return diagnosis.last_words(self._server_log().tail())

    def kill(self) -> None:
        """End the server at once; a `stop` that waits elsewhere goes on. Safe to call from a signal handler."""
        if self._process is not None:
            kill_group(self._process)

    def stop(self, grace_s: float | None = None) -> None:
        """End the server and everything that it started; does nothing where nothing runs.

        Args:
            grace_s: instead of `stop_grace_s`.
        """
        try:
            self.end_process(grace_s)
        finally:
            edge, self._edge = self._edge, None
            if edge is not None:
                # Last, so that the end is told as long as it takes.
                edge.stop()

    def end_process(self, grace_s: float | None = None) -> None:
        """End tritonserver and remove what it leaves, but go on telling how the server is; `start` brings it back."""
        process, run = self._process, self._run
        if process is not None:
            grace_s = self._stop_grace_s if grace_s is None else grace_s
            end(process, grace_s if self._ready else min(grace_s, _GRACE_BEFORE_READY_S))
            self._ready = False
        if run is not None:
            run.remove()
        self._process = self._run = None

    def _start(self) -> None:
        raise_file_limit()
        self._run = run = RunFolder()
        served = lay_out(self.repository, run.path / "models", level=self._level, key=self._verify_key)
        if self._level == ALL:
            # Weights that were compared once are not hashed again when a dead server is started again.
            self._level = CODE
        installation = find_server(self._server, run.path)
        check_fit(self.repository, installation, served)
        if self._edge is None:
            self._endpoints = self._endpoints.claimed(encrypted=self._tls is not None)
            self._access = Access(self._tls)
            models = model_names(self.repository)
            self._edge = start_edge(self._endpoints, self._tls, self._access, models, self.reports)
        self.description = installation.description
        command = command_line(
            installation,
            served,
            self._endpoints,
            run.shared_memory_prefix,
            self._access.arguments(run.path),
            exit_timeout_s=max(1, math.ceil(self._stop_grace_s - _UNLOAD_S)),
        )
        variables = {**os.environ, **server_variables(run.path), **installation.environment, SECRET: self._key}
        log = self._server_log()
        log.mark()
        self.key_is_hidden = False
        self._started_at = time.monotonic()
        self._process = spawn([*command, *self._extra_args], variables, log, run.inherited())
        run.note_server(self._process.pid)

    def _hide_key(self, has_started: bool = False) -> None:
        """Take the key out of the server's arguments once it has read them, that is when it has written something."""
        has_started = has_started or self._server_log().has_grown()
        if not self.key_is_hidden and self._process is not None and has_started:
            self.key_is_hidden = argv.overwrite(self._process.pid, self._key)

    def _server_log(self) -> ServerLog:
        """The log, emptied when it is first needed; servers that follow append to it."""
        if self._log is None:
            self._log = ServerLog(self.log_path, self._log_max_bytes)
            self._log.empty()
        return self._log

    def _ask(self, probes: tuple[readiness.Probe, ...], left_s: float) -> str | None:
        """Why no embedding comes back yet; None when it does."""
        if not is_listening(*self._endpoints.connectable("grpc")):
            return "its gRPC port is not open yet"
        self._hide_key(has_started=True)
        try:
            readiness.ask(self._access, self.grpc_address, probes, min(_PROBE_TIMEOUT_S, left_s))
        except readiness.StillStartingError as error:
            return str(error)
        return None

    def _check_alive(self) -> None:
        if self._process is None:
            raise ServeError("this server is not running; call start() first")
        status = self._process.poll()
        if status is not None:
            raise explain_end(status, self._server_log())


def default_log_path(repository: Path, grpc_port: int) -> Path:
    """Beside the repository, which stays as it was exported; where that is read-only, the temporary directory.

    The port keeps apart two servers of one repository.
    """
    # Without `..`, whose parent may be inside the repository.
    repository = Path(os.path.abspath(repository))  # noqa: PTH100
    parent = repository.parent if os.access(repository.parent, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"{repository.name}.tritonserver-{grpc_port}.log"
