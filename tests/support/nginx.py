"""A real nginx with the configuration that deploy/nginx/ ships, in front of a server of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from certificates import Pair

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "tritonclip.conf"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
MISSING = None if NGINX else "there is no nginx; apt-get install --no-install-recommends nginx-light"
START_S = 10.0
MAIN = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/tritonclip.conf;
}}
"""


@contextmanager
def proxy(folder: Path, upstream: str, pair: Pair, keys: Mapping[str, str]) -> Iterator[str]:
    """Run nginx in `folder`; yields the address of its gRPC port.

    Args:
        upstream: `host:port` of the server behind it.
        pair: its certificate for 127.0.0.1.
        keys: callers' names by key.
    """
    port = _free_port()
    (folder / "keys").write_text("".join(f'"Bearer {key}" {name};\n' for key, name in keys.items()))
    replaced = {
        "/etc/nginx/tritonclip.keys": str(folder / "keys"),
        "127.0.0.1:8001": upstream,
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        "/etc/nginx/tritonclip.pem": str(pair.certificate),
        "/etc/nginx/tritonclip.key;": f"{pair.key};",
    }
    text = "\n".join(line for line in CONFIGURATION.read_text().splitlines() if not line.startswith("#"))
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "tritonclip.conf").write_text(text)
    # Workers of root would become another user, who cannot read the folder.
    main = MAIN.format(folder=folder, user="user root;" if os.geteuid() == 0 else "")
    (folder / "nginx.conf").write_text(main)
    process = subprocess.Popen(
        [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nginx does not listen")
