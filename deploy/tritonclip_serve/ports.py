"""Ports to listen on: the ones asked for if they are free, or free ones."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from tritonclip_serve.errors import AddressError

ANY_PORT = 0
_HIGHEST_PORT = 65535


def claim_ports(host: str, wanted: Mapping[str, int], avoid: Collection[int] = ()) -> dict[str, int]:
    """Check that every port can be listened on, and choose a free one for each 0.

    Args:
        host: an IPv4 address or a host name.
        wanted: port by the name of the option that gave it.
        avoid: ports that a 0 must not become.

    Raises:
        AddressError: names the first port that cannot be had, or the host.
    """
    # All stay bound until the last is chosen, so that no two get the same port.
    with ExitStack() as held:
        return {option: _claim(host, option, port, held, avoid) for option, port in wanted.items()}


def is_listening(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether something accepts TCP connections at an address."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def _claim(host: str, option: str, port: int, held: ExitStack, avoid: Collection[int]) -> int:
    if not ANY_PORT <= port <= _HIGHEST_PORT:
        raise AddressError(f"{option} {port} is not a port; give 1 to {_HIGHEST_PORT}, or 0 for any free port")
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # As a server does: connections of an earlier server that linger in TIME_WAIT do not block the port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except socket.gaierror as error:
        raise AddressError(f"host {host!r} has no IPv4 address ({error.strerror}); try 127.0.0.1") from error
    except PermissionError as error:
        raise AddressError(f"{option} {port} needs privileges; give a port from 1024 up, or 0") from error
    except OSError as error:
        raise AddressError(_unavailable(host, option, port, error)) from error
    chosen = int(listener.getsockname()[1])
    return chosen if port or chosen not in avoid else _claim(host, option, port, held, avoid)


def _unavailable(host: str, option: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host!r} is no address of this machine; give one that is, 127.0.0.1, or 0.0.0.0 for all of them"
    return (
        f"{option} {port} cannot be listened on at {host} ({error.strerror}); "
        f"stop what uses it (`ss -ltnp sport = :{port}` names it), or give {option} another port, or 0 for any free one"
    )
