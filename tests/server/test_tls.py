"""Who gets through TLS and mutual TLS, on every port of a real server; and that it knows itself under both."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from certificates import Authority, Pair
from tiny_repository import write_tiny_repository
from tritonclip_client import ClipClient, Tls
from tritonclip_client.main import main
from tritonclip_serve import TritonServer
from tritonclip_serve.edge.tls import ServerTls

PORTS = ("gRPC", "HTTP", "metrics")
FREE = {"grpc_port": 0, "metrics_port": 0, "http_port": 0}
REFUSED = (OSError, HTTPException, InferenceServerException)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the server's certificates and the callers'."""
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def mutual(
    demo_repository: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """The demo behind mutual TLS, with HTTP."""
    pair = authority.sign("server", "clip.example", "127.0.0.1")
    tls = ServerTls(pair.certificate, pair.key, authority.certificate)
    log = tmp_path_factory.mktemp("mutual") / "log"
    with TritonServer(demo_repository, **FREE, tls=tls, log_path=log) as server:
        yield server


def get(address: str, path: str, root: Path, pair: Pair | None) -> int:
    """The status of a page over TLS."""
    context = ssl.create_default_context(cafile=str(root))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(f"https://{address}{path}", timeout=10) as answer:
        return int(answer.status)


def gets_in(server: TritonServer, port: str, root: Path, pair: Pair | None) -> bool:
    """Whether a caller who trusts `root` and shows `pair` reaches a port."""
    try:
        if port == "HTTP":
            return get(server.http_address, "/v2/health/ready", root, pair) == 200
        if port == "metrics":
            return get(server.metrics_address, "/health/ready/clip", root, pair) == 200
        files = {} if pair is None else {"private_key": str(pair.key), "certificate_chain": str(pair.certificate)}
        client = triton.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=str(root), **files)
        try:
            return bool(client.is_model_ready("clip", client_timeout=10))
        finally:
            client.close()
    except REFUSED:
        return False


def test_a_caller_with_a_good_certificate_embeds(mutual: TritonServer, authority: Authority, demo: Path) -> None:
    pair = authority.sign("caller")
    with ClipClient(mutual.grpc_address, tls=Tls(authority.certificate, pair.key, pair.certificate)) as client:
        client.check_ready()
        (vector,) = client.embed_images([demo / "images" / "pencil_red_square.jpg"])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    files = ("--tls-ca", authority.certificate, "--tls-cert", pair.certificate, "--tls-key", pair.key)
    assert main(["health", "--address", mutual.grpc_address, *map(str, files)]) == 0


@pytest.mark.parametrize("port", PORTS)
def test_who_gets_in_under_mutual_tls(
    mutual: TritonServer, authority: Authority, stranger: Authority, port: str
) -> None:
    ours, theirs = authority.certificate, stranger.certificate
    expired = authority.sign("expired", ends_in=timedelta(hours=-1))
    assert gets_in(mutual, port, ours, authority.sign("good"))
    assert not gets_in(mutual, port, theirs, authority.sign("good"))
    assert not gets_in(mutual, port, ours, None)
    assert not gets_in(mutual, port, ours, expired)
    assert not gets_in(mutual, port, ours, stranger.sign("foreign"))


@pytest.mark.parametrize("port", PORTS)
def test_nothing_is_answered_in_the_clear(mutual: TritonServer, port: str) -> None:
    addresses = {"gRPC": mutual.grpc_address, "HTTP": mutual.http_address, "metrics": mutual.metrics_address}
    with pytest.raises((OSError, HTTPException)):
        urllib.request.urlopen(f"http://{addresses[port]}/v2/health/live", timeout=10)


def test_old_versions_of_tls_are_refused(mutual: TritonServer, authority: Authority) -> None:
    pair = authority.sign("old")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(pair.certificate, pair.key)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    # Else this side would refuse it itself.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    for address in (mutual.metrics_address, mutual.grpc_address, mutual.http_address):
        with pytest.raises(OSError, match="(?i)version|alert|eof|reset"):
            urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=10)


def test_control_of_the_server_is_closed_over_http(mutual: TritonServer, authority: Authority) -> None:
    pair = authority.sign("curious")
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            get(mutual.http_address, path, authority.certificate, pair)
        assert refusal.value.code == 403
        refusal.value.close()


def test_other_users_of_the_machine_cannot_read_what_callers_send(mutual: TritonServer) -> None:
    (prefix,) = re.findall(r"shm-region-prefix-name=([^\0]+)", Path(f"/proc/{mutual.pid}/cmdline").read_text())
    segments = list(Path("/dev/shm").glob(f"{prefix}*"))
    assert segments
    assert {segment.stat().st_mode & 0o077 for segment in segments} == {0}
    assert mutual.run_dir is not None
    assert mutual.run_dir.stat().st_mode & 0o077 == 0


def test_the_page_tells_when_the_certificate_ends(mutual: TritonServer, authority: Authority) -> None:
    pair = authority.sign("monitoring")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(pair.certificate, pair.key)
    with urllib.request.urlopen(f"https://{mutual.metrics_address}/metrics", context=context, timeout=10) as answer:
        text = answer.read().decode()
    assert "nv_inference_request_success" in text
    assert "tritonclip_server_up 1" in text
    assert "tritonclip_tls_certificate_expires_seconds " in text


def test_certificates_change_with_a_restart(tmp_path: Path, authority: Authority, stranger: Authority) -> None:
    repository = write_tiny_repository(tmp_path / "repository")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    before, after = (one.sign("rotated", "127.0.0.1") for one in (authority, stranger))
    for pair, let_in, kept_out in ((before, authority, stranger), (after, stranger, authority)):
        cert.write_bytes(pair.certificate.read_bytes())
        key.write_bytes(pair.key.read_bytes())
        with TritonServer(repository, grpc_port=0, metrics_port=0, tls=ServerTls(cert, key)) as server:
            for root, wanted in ((let_in, True), (kept_out, False)):
                client = triton.InferenceServerClient(
                    server.grpc_address, ssl=True, root_certificates=str(root.certificate)
                )
                try:
                    assert client.is_server_ready(client_timeout=10) is wanted
                except InferenceServerException:
                    assert not wanted
                finally:
                    client.close()
            assert get(server.metrics_address, "/health/ready", let_in.certificate, None) == 200
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                get(server.metrics_address, "/health/ready", kept_out.certificate, None)


def test_the_supervisor_revives_a_model_under_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    repository = write_tiny_repository(tmp_path / "repository")
    pair = authority.sign("supervised", "127.0.0.1")
    files = (pair.certificate, pair.key, authority.certificate)
    options = (
        option for given in zip(("--tls-cert", "--tls-key", "--tls-client-ca"), files, strict=True) for option in given
    )
    command = [sys.executable, "-m", "tritonclip_client.main", "serve", repository, *options]
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    with subprocess.Popen([*map(str, command), *ports], stdout=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stdout is not None
            ready = serve.stdout.readline()
            assert ", mutual TLS; Ctrl-C stops it" in ready
            metrics = ready.partition("metrics ")[2].partition(",")[0]
            caller = authority.sign("watching")

            def is_ready() -> bool:
                try:
                    return get(metrics, "/health/ready/embed_text", authority.certificate, caller) == 200
                except urllib.error.HTTPError as error:
                    error.close()
                    return False

            assert is_ready()
            stub = next(
                process
                for process in psutil.Process(serve.pid).children(recursive=True)
                if any(word.endswith("/embed_text/1/model.py") for word in process.cmdline())
            )
            stub.kill()
            assert wait_for(lambda: not is_ready())
            assert wait_for(is_ready)
        finally:
            serve.terminate()
            serve.communicate(timeout=60)
    assert serve.returncode == 0


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds
