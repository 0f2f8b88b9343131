"""CPU time of the server's processes, where it runs on this machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import psutil

SERVER = "tritonserver"
STUB = "triton_python_backend_stub"
# gRPC opens a socket of IPv6 for an address of IPv4 too.
_IPV4_IN_IPV6 = "::ffff:"


@dataclass(frozen=True)
class Used:
    """Of one process: what it is for, and the CPU seconds since it began."""

    kind: str
    seconds: float


def find_server(address: str) -> psutil.Process | None:
    """The tritonserver that listens on `address`, HOST:PORT; None where it is elsewhere, or nobody may know."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        wanted = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)}
        here = {one.address for addresses in psutil.net_if_addrs().values() for one in addresses}
        if not wanted & here:
            return None
        listeners = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
            and one.laddr
            and one.laddr.port == int(port)
            and one.laddr.ip.removeprefix(_IPV4_IN_IPV6) in wanted | {"0.0.0.0", "::"}
        }
        # More than one can share a port, and which of them answers is not known.
        (pid,) = listeners
        process = psutil.Process(pid)
        return process if SERVER in process.name() else None
    except (OSError, ValueError, psutil.Error):
        return None


def flag(process: psutil.Process, name: str) -> str | None:
    """The value of the server's flag `--NAME=VALUE` or `--NAME VALUE`, the last one given; None where it has none."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if key == f"--{name}":
            found = value if equals else following
    return found


def used(server: psutil.Process) -> dict[int, Used]:
    """By process id what the server and everything that it started have used so far."""
    found = {}
    try:
        processes = [server, *server.children(recursive=True)]
    except psutil.Error:
        return {}
    for process in processes:
        try:
            times = process.cpu_times()
            found[process.pid] = Used(_kind(process, server), times.user + times.system)
        except psutil.Error:
            continue
    return found


def cores(before: Mapping[int, Used], after: Mapping[int, Used], window_s: float) -> dict[str, float]:
    """Cores that each kind of process used on average, for JSON: `tritonserver`, and each Python model by its name."""
    found: dict[str, float] = {}
    for pid, now in after.items():
        seconds = now.seconds - (before[pid].seconds if pid in before else 0.0)
        found[now.kind] = found.get(now.kind, 0.0) + seconds / window_s
    return found


def _kind(process: psutil.Process, server: psutil.Process) -> str:
    if process.pid == server.pid:
        return SERVER
    words = process.cmdline()
    # A stub is called with its model's file: DIR/MODEL/VERSION/model.py.
    if words and words[0].endswith(STUB) and len(words) > 1:
        return PurePath(words[1]).parent.parent.name
    return "other"
