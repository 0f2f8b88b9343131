"""What can go wrong with a campaign itself, as opposed to the server that it tries.

ChaosError          exit code 2: something given to the command is wrong
└── ServerFault     exit code 3: the server under test did not start, or did not end
"""

from __future__ import annotations


class ChaosError(Exception):
    """Something given to the command is wrong; the message says what, what is allowed and what to do."""

    exit_code = 2


class ServerFault(ChaosError):  # noqa: N818 - the fault is the server's
    """The server under test did not start, or did not end."""

    exit_code = 3
