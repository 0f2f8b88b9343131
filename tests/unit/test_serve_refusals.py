"""What is refused before a server is started: each refusal says what was given, what is allowed, what to do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tritonclip_serve
from tritonclip_client.main import main
from tritonclip_serve import ServeError, errors, installation
from tritonclip_serve.errors import (
    AddressError,
    EnvironmentFaultError,
    LogFileError,
    RepositoryError,
    ServerNotFoundError,
    TlsFileError,
)
from tritonclip_serve.installation import check_numpy, find_server
from tritonclip_serve.log import ServerLog
from tritonclip_serve.ports import claim_ports, is_listening
from tritonclip_serve.process import live_members, spawn
from tritonclip_serve.repository import check_repository, model_names, read_identity

LOOPBACK = "127.0.0.1"


def write_repository(folder, manifest):
    for model in ("embed_image", "embed_text"):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(f'name: "{model}"\n')
    (folder / "manifest.json").write_text(manifest)
    return folder


def test_the_errors_are_one_tree_with_exit_codes():
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeError)}
    refused = {RepositoryError, ServerNotFoundError, EnvironmentFaultError, AddressError, LogFileError, TlsFileError}
    assert {kind for kind in tree if kind.exit_code == 2} == refused
    assert {kind.exit_code for kind in tree - refused} == {3}
    assert all(kind.__name__ in errors.__doc__ for kind in tree)


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LogFileError, match=r"the log cannot be written to .*file/log \(.*\); give another file"):
        spawn(["true"], {}, ServerLog(tmp_path / "file" / "log"))


def test_a_directory_that_does_not_exist(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert "tritonclip export" in message


def test_a_file_instead_of_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="is a file; expected a model repository directory"):
        check_repository(tmp_path / "file")


def test_a_directory_that_is_no_repository_names_what_is_missing(tmp_path):
    with pytest.raises(RepositoryError) as refusal:
        check_repository(tmp_path)
    for wanted in ("manifest.json", "embed_image/config.pbtxt", "embed_text/config.pbtxt", "tritonclip export"):
        assert wanted in str(refusal.value)


@pytest.mark.parametrize("manifest", ["{", "[]", '{"spec": 3}'])
def test_a_manifest_that_cannot_be_read(tmp_path, manifest):
    with pytest.raises(RepositoryError, match=r"manifest\.json"):
        read_identity(write_repository(tmp_path / "r", manifest))


def test_identity_and_models_of_a_repository(tmp_path):
    manifest = json.dumps({"format": 1, "spec": {"name": "demo", "fingerprint": "ab12"}, "files": {}})
    repository = write_repository(tmp_path / "r", manifest)
    assert (read_identity(repository).name, read_identity(repository).fingerprint) == ("demo", "ab12")
    assert model_names(repository) == ("embed_image", "embed_text")


def test_a_port_in_use_is_named():
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert is_listening(LOOPBACK, taken)
        with pytest.raises(AddressError, match=f"--http-port {taken} cannot be listened on at {LOOPBACK}"):
            claim_ports(LOOPBACK, {"--grpc-port": 0, "--http-port": taken})
    assert not is_listening(LOOPBACK, taken)


def test_free_ports_differ():
    ports = claim_ports(LOOPBACK, {"--grpc-port": 0, "--http-port": 0, "--metrics-port": 0})
    assert len(set(ports.values())) == 3
    assert all(port > 0 for port in ports.values())


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        (LOOPBACK, 65536, "--grpc-port 65536 is not a port"),
        (LOOPBACK, -1, "--grpc-port -1 is not a port"),
        ("192.0.2.1", 0, "is no address of this machine"),
    ],
)
def test_an_address_that_cannot_be_listened_on(host, port, message):
    with pytest.raises(AddressError, match=message):
        claim_ports(host, {"--grpc-port": port})


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1", "10.1"])
def test_numpy_2_is_refused(version):
    with pytest.raises(EnvironmentFaultError, match=f"numpy {version} is installed.*pip install 'numpy<2'"):
        check_numpy(version)


def test_numpy_1_is_accepted():
    check_numpy("1.26.4")


def test_no_server_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "CONTAINER_BINARY", tmp_path / "tritonserver")
    with pytest.raises(ServerNotFoundError, match=r"no tritonserver found .*pip install '\.\[serve\]'"):
        find_server("path", tmp_path)


def test_a_server_on_the_path_brings_its_own_backends(tmp_path, monkeypatch):
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_server("path", tmp_path)
    assert (found.executable, found.arguments, found.environment) == (program, (), {})


def test_an_unknown_kind_of_server(tmp_path):
    with pytest.raises(ServerNotFoundError, match="'docker' is unknown; give one of: auto, embedded, path"):
        find_server("docker", tmp_path)


def test_a_server_whose_caller_has_ended_does_not_start():
    launcher = Path(tritonclip_serve.__file__).with_name("die_with_parent.py")
    command = [sys.executable, str(launcher), str(os.getpid() + 1), sys.executable, "-c", "print('started')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "started" not in done.stdout


def test_an_ended_process_is_no_live_member_of_its_group():
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
    with process:
        assert live_members(process.pid) == [process.pid]
        process.kill()
    assert live_members(process.pid) == []


def test_the_package_costs_next_to_nothing_to_import():
    code = "import sys, tritonclip_serve.commands.serve as s; print('numpy' in sys.modules, 'grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
