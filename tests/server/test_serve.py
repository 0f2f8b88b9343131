"""Starting and ending a real tritonserver, over repositories of two small models that stand in for the encoders."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tritonclip_client.main import main
from tritonclip_export.repository.manifest import write_manifest
from tritonclip_serve import ModelLoadError, TritonServer
from tritonclip_serve.errors import NotReadyError, ServerDiedError
from tritonclip_serve.process import live_members
from tritonclip_serve.runs import sweep
from tritonclip_serve.verified import NONE

SHARED_MEMORY = Path("/dev/shm")
ANY_PORTS = ("--grpc-port", "0", "--metrics-port", "0")
FREE = {"grpc_port": 0, "metrics_port": 0}

CONFIG = """
name: "{model}"
backend: "python"
max_batch_size: 8
input [ {{ name: "{tensor}" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ 2 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""

# Embeds an item as its length and 1.
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(r, "{tensor}").as_numpy()) for r in requests]

    def answer(self, items):
        embedding = np.array([[{value}, 1] for item in items[:, 0]], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embedding)])
"""


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    for model, tensor in (("embed_image", "image"), ("embed_text", "text")):
        write_model(root, model, tensor)
    return root


def write_model(root, model, tensor, initialize="pass", value="len(item)"):
    (root / model / "1").mkdir(parents=True, exist_ok=True)
    (root / model / "config.pbtxt").write_text(CONFIG.format(model=model, tensor=tensor))
    code = MODEL.format(tensor=tensor, initialize=initialize, value=value)
    (root / model / "1" / "model.py").write_text(code)
    write_manifest(root, {"spec": {"name": "tiny", "fingerprint": "0123456789abcdef"}})


def embed_text(server, text):
    client = grpcclient.InferenceServerClient(server.grpc_address)
    tensor = grpcclient.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=object))
    embedding = client.infer("embed_text", [tensor], client_timeout=20).as_numpy("embedding")
    client.close()
    return embedding.tolist()


def shared_memory_prefix(pid):
    (prefix,) = re.findall(r"shm-region-prefix-name=(\S+)", " ".join(psutil.Process(pid).cmdline()))
    return prefix


def listening_addresses(pid):
    connections = psutil.Process(pid).net_connections("inet")
    listening = (connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN)
    return {address.removeprefix("::ffff:") for address in listening}


def segments(prefix):
    return [path.name for path in SHARED_MEMORY.glob(f"{prefix}*")]


@pytest.fixture
def serve(repository, tmp_path):
    """Starts `tritonclip serve` and kills what is left of it when the test has failed."""
    started = []

    def start(*options):
        command = [sys.executable, "-m", "tritonclip_client.main", "serve", str(repository), *ANY_PORTS, *options]
        # A killed command cannot remove its folder of links.
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes, env=environment, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def server_of(command):
    """Process id of the tritonserver that `tritonclip serve` runs."""
    (child,) = psutil.Process(command.pid).children()
    return child.pid


def test_the_library_starts_a_server_that_answers_and_ends_all_of_it(repository):
    with TritonServer(repository, **FREE) as server:
        pid, prefix = server.pid, shared_memory_prefix(server.pid)
        assert embed_text(server, b"four") == [[4, 1]]
        assert server.grpc_address != server.metrics_address
        assert len(live_members(pid)) == 3
        assert segments(prefix)
        assert listening_addresses(pid) == {"127.0.0.1"}
        backends = next(word for word in psutil.Process(pid).cmdline() if word.startswith("--backend-directory="))
    assert server.pid is None
    assert live_members(pid) == []
    assert segments(prefix) == []
    assert not Path(backends.partition("=")[2]).exists()
    assert "successfully loaded 'embed_text'" in server.log_path.read_text()
    assert server.log_path.parent == repository.parent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_in_order(serve, number):
    command = serve()
    ready = command.stdout.readline()
    assert re.search(r"ready in \d.*: tiny, fingerprint 0123456789ab, gRPC 127\.0\.0\.1:\d+, metrics ", ready)
    pid = server_of(command)
    prefix = shared_memory_prefix(pid)
    command.send_signal(number)
    _, progress = command.communicate()
    assert command.returncode == 0
    assert "2 of 2 models loaded" in progress
    assert live_members(pid) == []
    assert segments(prefix) == []


def test_a_signal_while_models_load_ends_the_command_in_order(serve):
    command = serve()
    while "models loaded" not in (line := command.stderr.readline()):
        assert line
    pid = server_of(command)
    command.send_signal(signal.SIGTERM)
    ready, _ = command.communicate()
    assert (command.returncode, ready) == (0, "")
    assert live_members(pid) == []


def test_a_server_that_dies_is_reported(serve):
    command = serve("--restart-limit", "0")
    command.stdout.readline()
    pid = server_of(command)
    prefix = shared_memory_prefix(pid)
    os.kill(pid, signal.SIGKILL)
    _, message = command.communicate()
    assert command.returncode == 3
    assert "error: tritonserver ended by itself (signal SIGKILL)" in message
    assert "Traceback" not in message
    assert live_members(pid) == []
    assert segments(prefix) == []


def test_a_server_does_not_outlive_a_killed_command(serve):
    command = serve()
    command.stdout.readline()
    processes = psutil.Process(command.pid).children(recursive=True)
    prefix = shared_memory_prefix(processes[0].pid)
    command.kill()
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    sweep()
    assert segments(prefix) == []


def test_a_model_that_does_not_initialize_is_named_with_its_reason(repository, capsys):
    write_model(repository, "embed_text", "text", initialize="raise RuntimeError('the weights are\\n not here')")
    assert main(["serve", str(repository), *ANY_PORTS]) == 3
    message = capsys.readouterr().err.partition("error: ")[2]
    first, second = message.splitlines()
    assert first == "model 'embed_text' failed to load: RuntimeError: the weights are not here"
    log = Path(second.partition("the whole log is in ")[2])
    assert "model.py(8): initialize" in log.read_text()


def test_every_model_that_cannot_be_loaded_is_named(repository):
    (repository / "embed_text" / "config.pbtxt").write_text('name: "embed_text')
    (repository / "embed_image" / "1" / "model.py").write_text("def (")
    with pytest.raises(ModelLoadError) as refusal, TritonServer(repository, **FREE, verify=NONE):
        pass
    reasons = {failure.model: failure.reason for failure in refusal.value.failures}
    assert set(reasons) == {"embed_image", "embed_text"}
    assert "(line 1, column 18: Unexpected end of string.)" in reasons["embed_text"]
    assert reasons["embed_image"].startswith("SyntaxError: invalid syntax")


def test_ready_means_an_embedding_and_not_an_open_port(repository):
    write_model(repository, "embed_text", "text", value="float('nan')")
    server = TritonServer(repository, **FREE)
    with pytest.raises(NotReadyError, match="embed_text answered its warm-up item with no embedding"), server:
        pass
    assert server.pid is None


def test_a_server_that_needs_too_long_is_stopped(repository):
    write_model(repository, "embed_image", "image", initialize="import time; time.sleep(60)")
    server = TritonServer(repository, **FREE, startup_timeout_s=3)
    with pytest.raises(NotReadyError, match=r"within 3 s .*not loaded: embed_image"), server:
        pass
    assert server.pid is None


def test_a_flag_that_the_server_does_not_know(repository):
    with (
        pytest.raises(ServerDiedError, match="unrecognized option '--nope'"),
        TritonServer(repository, **FREE, extra_args=["--nope"]),
    ):
        pass


def test_clients_cannot_register_shared_memory(repository):
    with TritonServer(repository, **FREE, http_port=0) as server:
        for library, address in ((grpcclient, server.grpc_address), (httpclient, server.http_address)):
            client = library.InferenceServerClient(address)
            with pytest.raises(InferenceServerException, match="restricted"):
                client.register_system_shared_memory("mine", "/somebody_elses", 4)
            client.close()


def test_a_container_gets_the_servers_log_too(serve):
    command = serve("--show-log")
    command.stdout.readline()
    command.send_signal(signal.SIGTERM)
    _, shown = command.communicate()
    assert "Started GRPCInferenceService" in shown
    assert "Waiting for in-flight requests to complete" in shown
    assert shown.rstrip().endswith("stopped")
