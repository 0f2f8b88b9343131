"""What `tritonclip serve` refuses of hosts, ports, HTTP and certificates, before anything starts."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from certificates import Authority, Pair
from tiny_repository import write_tiny_repository
from tritonclip_client.main import main
from tritonclip_serve.edge.endpoints import Endpoints, check_exposure
from tritonclip_serve.edge.options import add_arguments, server_options
from tritonclip_serve.edge.tls import ServerTls
from tritonclip_serve.errors import AddressError, TlsFileError

ANY = ("--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.sign("server", "clip.example")


def serve(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The error of a command that starts nothing."""
    repository = write_tiny_repository(tmp_path / "repository")
    assert main(["serve", str(repository), *ANY, *map(str, options)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    # What other servers on this machine left behind is none of this test's.
    (error,) = [line for line in shown.err.splitlines() if not line.startswith("removed what")]
    assert not list(tmp_path.glob("*.log"))
    return error


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com"])
def test_other_machines_are_not_served_in_the_clear(tmp_path, capsys, host: str) -> None:
    message = serve(tmp_path, capsys, "--host", host)
    assert f"error: --host {host} can be reached from other machines" in message
    assert "--tls-cert" in message
    assert "--insecure" in message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "localhost"])
def test_this_machine_is(host: str) -> None:
    check_exposure(host, encrypted=False, insecure=False)


def test_other_machines_are_served_encrypted_or_where_that_is_asked_for() -> None:
    check_exposure("0.0.0.0", encrypted=True, insecure=False)
    check_exposure("0.0.0.0", encrypted=False, insecure=True)


def test_options_that_do_not_go_together(tmp_path, capsys) -> None:
    assert "HTTP inference is off unless --http" in serve(tmp_path / "1", capsys, "--http-port", "0")
    assert "--tls-cert and --tls-key go together" in serve(tmp_path / "2", capsys, "--tls-cert", "c.pem")
    assert "--tls-client-ca is given without" in serve(tmp_path / "3", capsys, "--tls-client-ca", "c.pem")


def test_files_that_are_no_certificates(tmp_path, capsys, pair: Pair) -> None:
    other = Authority(tmp_path, "other").sign("other")
    none, text = tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no certificate")

    def refusal(cert: Path, key: Path, *more: object) -> str:
        return serve(tmp_path / str(len(list(tmp_path.iterdir()))), capsys, "--tls-cert", cert, "--tls-key", key, *more)

    assert f"--tls-cert {none} cannot be read (No such file or directory)" in refusal(none, pair.key)
    assert f"--tls-key {none} cannot be read" in refusal(pair.certificate, none)
    assert "do not go together" in refusal(pair.certificate, other.key)
    assert "do not go together" in refusal(text, pair.key)
    assert "--tls-client-ca" in refusal(pair.certificate, pair.key, "--tls-client-ca", none)
    assert "holds no certificate" in refusal(pair.certificate, pair.key, "--tls-client-ca", text)


def test_a_certificate_whose_time_is_not_now(authority: Authority) -> None:
    expired = authority.sign("expired", "clip.example", ends_in=timedelta(minutes=-1))
    with pytest.raises(TlsFileError, match=r"expired at 2\d{3}-\d\d-\d\d \d\d:\d\d UTC; renew it"):
        ServerTls(expired.certificate, expired.key).check()


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (("clip.example", "other.example"), "clip.example"),
        (("*.clip.example",), "any.clip.example"),
        (("10.0.0.1", "clip.example"), "clip.example"),
        (("10.0.0.1",), "10.0.0.1"),
        ((), "named"),
    ],
)
def test_the_server_is_asked_by_a_name_of_its_certificate(
    authority: Authority, hosts: tuple[str, ...], name: str
) -> None:
    signed = authority.sign("named", *hosts)
    assert ServerTls(signed.certificate, signed.key).own_name() == name


def parsed(*options: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return server_options(parser.parse_args(options))


def test_http_is_off_unless_it_is_asked_for() -> None:
    assert parsed()["http_port"] is None
    assert parsed("--http")["http_port"] == 8000
    assert parsed("--http", "--http-port", "0")["http_port"] == 0
    assert "--allow-http=false" in Endpoints("127.0.0.1", 1, 2).arguments()


def test_what_the_edge_stands_in_front_of_listens_on_loopback_alone() -> None:
    for encrypted in (False, True):
        ends = Endpoints("0.0.0.0", grpc=0, metrics=0, http=0).claimed(encrypted)
        flags = dict(flag[2:].split("=") for flag in ends.arguments())
        assert flags["grpc-address"] == "0.0.0.0"
        assert (flags["metrics-address"], flags["metrics-port"]) == ("127.0.0.1", str(ends.inner_metrics))
        assert (flags["http-address"] == "127.0.0.1") is encrypted
        ports = [ends.grpc, ends.metrics, ends.http, ends.inner_metrics, *([ends.inner_http] if encrypted else [])]
        assert all(ports)
        assert len(set(ports)) == len(ports)


def test_an_address_that_is_not_there_is_no_address() -> None:
    with pytest.raises(AddressError, match="no HTTP endpoint; start it with one"):
        Endpoints("127.0.0.1", 1, 2).address("http")
