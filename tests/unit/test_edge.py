"""The edge on real sockets: what it answers, and what a caller who only wastes time gets."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

import kserve_server
from certificates import Authority
from tritonclip_serve.edge import http as edge_http
from tritonclip_serve.edge import server as edge_server
from tritonclip_serve.edge.pages import Pages, Reports
from tritonclip_serve.edge.server import Edge
from tritonclip_serve.ports import claim_ports

LOOPBACK = "127.0.0.1"
METRICS = "# HELP nv_inference_count of items\nnv_inference_count 7\n"


class _Upstream(BaseHTTPRequestHandler):
    """Tritonserver's metrics, and a body given back for whatever else is asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        time.sleep(self.server.pause_s)  # type: ignore[attr-defined]
        self._answer(METRICS.encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"]))[::-1])

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer((LOOPBACK, 0), _Upstream)
    server.asked, server.pause_s = 0, 0.0
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def triton() -> Iterator[kserve_server.Server]:
    with kserve_server.serving() as server:
        yield server


@contextmanager
def running(
    metrics: tuple[str, int],
    grpc_address: str,
    reports: Reports | None = None,
    models: Collection[str] = ("clip",),
) -> Iterator[int]:
    """The edge; yields its port."""
    (port,) = claim_ports(LOOPBACK, {"port": 0}).values()
    pages = Pages(metrics, lambda: grpc.insecure_channel(grpc_address), models, reports or Reports())
    edge = Edge(pages, (LOOPBACK, port))
    before = set(threading.enumerate())
    edge.start()
    (started,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "edge")
    try:
        yield port
    finally:
        edge.stop()
        assert not started.is_alive()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
        return received


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metrics", 200),
        ("/metrics?name=x", 200),
        ("/health/live", 200),
        ("/health/ready/clip", 200),
        ("/health/ready/nope", 404),
        ("/health/ready/clip/", 404),
        ("/health/ready/", 404),
        ("/health/readyclip", 404),
        ("/metrics/", 404),
        ("/", 404),
        ("/v2/health/ready", 404),
        ("//metrics", 404),
        ("/health/../metrics", 404),
        ("http://elsewhere/metrics", 404),
    ],
)
def test_a_path_is_known_or_it_is_not(upstream, triton, path: str, status: int) -> None:
    with running(upstream.server_address, triton.address) as port:
        assert ask(port, path)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(upstream, triton, method: str) -> None:
    with running(upstream.server_address, triton.address) as port:
        assert ask(port, "/metrics", method)[0] == 405
        assert ask(port, "/metrics", "HEAD") == (200, "")


def test_the_metrics_are_tritons_and_the_supervisors(upstream, triton) -> None:
    reports = Reports(counters=lambda: "tritonclip_restarts_total 3\n")
    with running(upstream.server_address, triton.address, reports) as port:
        _, text = ask(port, "/metrics")
    assert text.startswith(METRICS)
    assert text.splitlines()[-2:] == ["tritonclip_server_up 1", "tritonclip_restarts_total 3"]


def test_without_a_server_the_counters_are_still_told(triton) -> None:
    (nobody,) = claim_ports(LOOPBACK, {"port": 0}).values()
    with running((LOOPBACK, nobody), triton.address, Reports(counters=lambda: "tritonclip_restarts_total 4")) as port:
        status, text = ask(port, "/metrics")
    assert status == 200
    assert text.splitlines()[-2:] == ["tritonclip_server_up 0", "tritonclip_restarts_total 4"]


def test_many_scrapes_at_once_ask_the_server_one_at_a_time(upstream, triton) -> None:
    upstream.pause_s = 0.1
    with running(upstream.server_address, triton.address) as port, ThreadPoolExecutor(16) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda _: ask(port, "/metrics"), range(32)))
        took = time.monotonic() - started
    assert {status for status, _ in answers} == {200}
    assert 1 <= upstream.asked <= 1 + took / upstream.pause_s


def test_a_scrape_tells_what_was_counted_before_it(upstream, triton) -> None:
    with running(upstream.server_address, triton.address) as port:
        for number in range(1, 6):
            ask(port, "/metrics")
            assert upstream.asked == number


def test_readiness_is_that_of_the_model(upstream, triton) -> None:
    triton.not_ready = frozenset({"embed_image"})
    with running(upstream.server_address, triton.address, models=("embed_image", "embed_text")) as port:
        assert ask(port, "/health/ready/embed_text") == (200, "ready\n")
        assert ask(port, "/health/ready/embed_image") == (503, "not ready\n")
        triton.not_ready = frozenset()
        time.sleep(0.25)
        assert ask(port, "/health/ready/embed_image") == (200, "ready\n")


def test_what_the_supervisor_knows_comes_first(upstream, triton) -> None:
    draining, unusable = [False], set()
    reports = Reports(draining=lambda: draining[0], unusable=lambda: unusable)
    with running(upstream.server_address, triton.address, reports, ("clip", "similarity")) as port:
        assert ask(port, "/health/ready/clip") == (200, "ready\n")
        unusable.add("clip")
        assert ask(port, "/health/ready/clip") == (503, "not ready\n")
        assert ask(port, "/health/ready") == (503, "not ready\n")
        assert ask(port, "/health/ready/similarity") == (200, "ready\n")
        draining[0] = True
        assert ask(port, "/health/ready/similarity") == (503, "draining\n")
        assert ask(port, "/health/live") == (200, "live\n")


def test_a_server_that_comes_back_is_ready_again(upstream) -> None:
    (port_of_triton,) = claim_ports(LOOPBACK, {"port": 0}).values()
    with running(upstream.server_address, f"{LOOPBACK}:{port_of_triton}") as port:
        assert ask(port, "/health/ready/clip") == (503, "not ready\n")
        with kserve_server.serving(kserve_server.Server(), port=port_of_triton):
            deadline = time.monotonic() + 5
            while ask(port, "/health/ready/clip")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert ask(port, "/health/ready/clip") == (200, "ready\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2 * edge_http.MAX_HEAD_BYTES + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 2 * edge_http.MAX_HEAD_BYTES, b"431"),
        (b"\x16\x03\x01\x02\x00" + bytes(200) + b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: a\r\n\r\n", b"501"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"405"),
    ],
)
def test_what_is_no_request_is_refused(upstream, triton, sent: bytes, status: bytes) -> None:
    with running(upstream.server_address, triton.address) as port:
        assert raw(port, sent).split(b"\r\n")[0].split(b" ")[1] == status
        assert ask(port, "/health/live")[0] == 200


def test_a_caller_who_says_nothing_is_sent_away(upstream, triton, monkeypatch) -> None:
    monkeypatch.setattr(edge_http, "_HEAD_S", 0.2)
    with running(upstream.server_address, triton.address) as port:
        started = time.monotonic()
        assert raw(port, b"GET /metrics HT") == b""
        assert time.monotonic() - started < 3


def test_idle_connections_do_not_keep_a_probe_out(upstream, triton, monkeypatch) -> None:
    monkeypatch.setattr(edge_server, "MAX_PAGE_CONNECTIONS", 4)
    with running(upstream.server_address, triton.address) as port:
        idle = [socket.create_connection((LOOPBACK, port), timeout=5) for _ in range(20)]
        assert ask(port, "/health/live")[0] == 200
        # The oldest had to go; the youngest still wait.
        assert idle[0].recv(1) == b""
        idle[-1].sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200")
        for connection in idle:
            connection.close()


def test_a_connection_under_tls_is_carried_both_ways(upstream, triton, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("edge", LOOPBACK)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    metrics, public = claim_ports(LOOPBACK, {"metrics": 0, "http": 0}).values()
    pages = Pages(upstream.server_address, lambda: grpc.insecure_channel(triton.address), (), Reports())
    http_addresses = ((LOOPBACK, public), upstream.server_address)
    edge = Edge(pages, (LOOPBACK, metrics), http_addresses, context)
    edge.start()
    try:
        trust = ssl.create_default_context(cafile=str(authority.certificate))
        connection = http.client.HTTPSConnection(LOOPBACK, public, timeout=10, context=trust)
        # One connection for several requests, large ones in both directions.
        for size in (1, 3_000_000, 10):
            body = bytes(range(256)) * (size // 256 + 1)
            connection.request("POST", "/v2/models", body)
            assert connection.getresponse().read() == body[::-1]
        connection.close()
        # Nobody who does not finish the handshake holds up those who do.
        silent = socket.create_connection((LOOPBACK, public), timeout=5)
        again = http.client.HTTPSConnection(LOOPBACK, public, timeout=10, context=trust)
        again.request("GET", "/")
        assert again.getresponse().read() == METRICS.encode()
        again.close()
        silent.close()
    finally:
        edge.stop()
