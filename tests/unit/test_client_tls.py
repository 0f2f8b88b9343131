"""What the client says when TLS keeps it from a server; and that it does not try again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from certificates import Authority, Pair
from tritonclip_client import ClipClient, ServerUnavailableError, Tls, TlsError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@contextmanager
def listening(pair: Pair | None, client_root: Path | None = None) -> Iterator[str]:
    """A gRPC server that serves nothing."""
    server = grpc.server(ThreadPoolExecutor(1))
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        files = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
        root = None if client_root is None else client_root.read_bytes()
        credentials = grpc.ssl_server_credentials(files, root, require_client_auth=root is not None)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def refusal(address: str, tls: Tls | None, kind: type[Exception]) -> str:
    # Were it repeated, the pauses would take most of a minute.
    with ClipClient(address, tls=tls, timeout_s=10, retries=0 if kind is ServerUnavailableError else 20) as client:
        with pytest.raises(kind) as error:
            client.embed_texts(["a cat"])
        return str(error.value)


def test_a_certificate_that_expired(authority: Authority) -> None:
    with listening(authority.sign("old", "127.0.0.1", ends_in=timedelta(hours=-1))) as address:
        assert "the server's certificate has expired" in refusal(address, Tls(authority.certificate), TlsError)


def test_a_certificate_for_another_name(authority: Authority) -> None:
    with listening(authority.sign("other", "elsewhere.example")) as address:
        assert "is for other names" in refusal(address, Tls(authority.certificate), TlsError)


def test_an_authority_that_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    with listening(authority.sign("server", "127.0.0.1")) as address:
        assert "nobody that is trusted here" in refusal(address, Tls(other.certificate), TlsError)


def test_a_server_without_tls(authority: Authority) -> None:
    with listening(None) as address:
        assert "does not speak TLS there" in refusal(address, Tls(authority.certificate), TlsError)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_server_that_wants_tls_or_a_certificate(authority: Authority, encrypted: bool) -> None:
    pair = authority.sign("server", "127.0.0.1")
    with listening(pair, authority.certificate) as address:
        tls = Tls(authority.certificate) if encrypted else None
        # A server that dies closes connections, too.
        message = refusal(address, tls, ServerUnavailableError)
    assert "without a good certificate of their own" in message
