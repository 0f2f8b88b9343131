"""Python models of a real tritonserver are killed, stopped, hung and fattened: each comes back alone."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from supervised import Served, wait_until
from supervised_models import write_supervised_repository

PYTHON_MODELS = ("tower", "finish", "embed_image")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("supervised")
    repository = write_supervised_repository(folder / "repository")
    served = Served(repository, folder, "--model-memory-limit", "400")
    yield served
    served.kill()


@pytest.mark.parametrize("model", PYTHON_MODELS)
def test_a_killed_model_comes_back_and_the_others_stay(served: Served, model: str) -> None:
    before, server = served.stubs(), served.server()
    os.kill(before[model], signal.SIGKILL)
    line = served.line(f"Z model {model}: signal SIGKILL")
    assert f"{model}_0_0 (process {before[model]}); loaded again" in line
    assert all(served.embeds(entry) for entry in ("embed_text", "embed_image"))
    after = served.stubs()
    assert {name for name in before if before[name] != after[name]} == {model}
    assert served.server() == server
    counter = f'tritonclip_restarts_total{{cause="signal SIGKILL",name="{model}",what="model"}} 1'
    assert counter in served.page("/metrics")[1]


def test_several_that_die_at_once_come_back(served: Served) -> None:
    for model in ("tower", "finish"):
        os.kill(served.stubs()[model], signal.SIGKILL)
    for model in ("tower", "finish"):
        served.line(f"Z model {model}: signal SIGKILL.*loaded again")
    assert served.embeds()


def test_a_stopped_model_is_ended_and_comes_back(served: Served) -> None:
    stopped = served.stubs()["tower"]
    os.kill(stopped, signal.SIGSTOP)
    served.line(rf"Z model tower: stopped by a signal in tower_0_0 \(process {stopped}\); loaded again")
    assert served.embeds()


def test_a_model_whose_heart_stops_is_ended_and_comes_back(served: Served) -> None:
    assert served.embed("silent") == 6
    served.line(r"Z model tower: hung for \d\.\d s in tower_0_0")
    assert served.embeds()
    assert 'cause="hung",name="tower"' in served.page("/metrics")[1]


def test_a_model_that_holds_too_much_memory_comes_back(served: Served) -> None:
    # It may be ended before it answers.
    with suppress(InferenceServerException):
        served.embed("eat 600")
    served.line(r"Z model tower: held \d+ MB of memory, limit 400 MB")
    assert served.embeds()


def test_calls_that_died_with_a_model_do_not_wait_for_their_deadlines(served: Served) -> None:
    outcome: list[tuple[float, str]] = []

    def call() -> None:
        begun = time.monotonic()
        try:
            served.embed("sleep 100", timeout_s=120)
        except InferenceServerException as error:
            outcome.append((time.monotonic() - begun, str(error.status())))

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(1)
    os.kill(served.stubs()["tower"], signal.SIGKILL)
    line = served.line("Z model tower: signal SIGKILL")
    caller.join(60)
    ((seconds, status),) = outcome
    assert re.search(r"[1-9]\d* connections? ended because calls on them may be lost", line)
    assert status == "StatusCode.UNAVAILABLE"
    assert seconds < 60


def test_readiness_tells_which_entry_points_answer(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model that does not load again is tried until it does; the others answer meanwhile."""
    # The server reads copies of what was compared.
    (code,) = served.log.parent.glob("tritonclip_*/models/tower/1/model.py")
    good = code.read_text()
    code.write_text("raise RuntimeError('no weights')")
    try:
        os.kill(served.stubs()["tower"], signal.SIGKILL)
        served.line(r"Z model tower: signal SIGKILL; it did not come back \(.*no weights.*\), next try in \d+\.\d s")
        assert served.page("/health/ready/embed_image")[0] == 200
        assert served.page("/health/ready/embed_text")[0] == 503
        assert served.page("/health/ready")[0] == 503
        assert served.page("/health/live")[0] == 200
        assert served.embeds("embed_image")
        assert 'tritonclip_restart_failures_total{name="tower"' in served.page("/metrics")[1]
    finally:
        code.write_text(good)
    served.line("Z model tower: signal SIGKILL.*loaded again")
    assert served.embeds()
    assert wait_until(lambda: served.page("/health/ready")[0] == 200, 5)


def test_only_the_supervisor_controls_models_logs_and_traces(served: Served) -> None:
    client = triton.InferenceServerClient(served.grpc)
    calls = [
        lambda: client.load_model("tower"),
        lambda: client.unload_model("tower"),
        client.get_model_repository_index,
        client.get_log_settings,
        lambda: client.update_log_settings({"log_verbose_level": 9}),
        client.get_trace_settings,
        client.get_system_shared_memory_status,
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match="restricted"):
            call()
    assert client.get_inference_statistics("tower").model_stats
    client.close()


def test_the_key_is_not_in_the_arguments(served: Served) -> None:
    words = Path(f"/proc/{served.server()}/cmdline").read_bytes().split(b"\0")
    (rule,) = (word for word in words if word.startswith(b"--grpc-restricted-protocol="))
    assert rule.endswith(b":tritonclip=" + b"x" * 32)
    assert b"TRITONCLIP_SECRET" not in Path(f"/proc/{served.server()}/environ").read_bytes()


def test_a_killed_server_comes_back_on_its_ports(served: Served) -> None:
    server, boards = served.server(), list(served.log.parent.glob("tritonclip_*"))
    os.kill(server, signal.SIGKILL)
    served.line("Z server tritonserver: signal SIGKILL; starting it again")
    served.line(r"Z server tritonserver: signal SIGKILL; started again, back after \d+\.\d\d s")
    assert all(served.embeds(entry) for entry in ("embed_text", "embed_image"))
    assert served.server() != server
    left = list(served.log.parent.glob("tritonclip_*"))
    assert len(left) == 1
    assert not set(left) & set(boards)
    assert not list(Path("/dev/shm").glob(f"{boards[0].name}*"))
    assert 'name="tritonserver",what="server"} 1' in served.page("/metrics")[1]


def test_a_stopped_server_is_started_again(served: Served) -> None:
    os.kill(served.server(), signal.SIGSTOP)
    served.line("Z server tritonserver: stopped by a signal; started again")
    assert served.embeds()


def test_it_ends_in_order_and_leaves_nothing(served: Served) -> None:
    (folder,) = served.log.parent.glob("tritonclip_*")
    assert served.stop() == 0
    assert not folder.exists()
    assert not list(Path("/dev/shm").glob(f"{folder.name}*"))
