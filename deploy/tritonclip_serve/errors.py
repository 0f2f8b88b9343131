"""What can go wrong when a server is started, one tree.

ServeError                exit code 3: the server did not start, or did not stay up
├── RepositoryError       exit code 2: the directory is not a model repository that can be served
├── ServerNotFoundError   exit code 2: no tritonserver is installed
├── EnvironmentFaultError exit code 2: the server's Python cannot run the models
├── AddressError          exit code 2: a port or a host cannot be listened on
├── TlsFileError          exit code 2: a certificate or a key cannot be used
├── LogFileError          exit code 2: the server's log cannot be written where it was asked for
├── ModelLoadError        a model did not load; `failures` says which, and why
├── NotReadyError         the server is up, but no embedding came back
└── ServerDiedError       the server ended by itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class ServeError(Exception):
    """The server did not start, or did not stay up."""

    exit_code = 3


class RepositoryError(ServeError):
    """The directory is not a model repository that can be served."""

    exit_code = 2


class ServerNotFoundError(ServeError):
    """No tritonserver of the kind that was asked for is installed."""

    exit_code = 2


class EnvironmentFaultError(ServeError):
    """The Python that the server would start cannot run the models."""

    exit_code = 2


class AddressError(ServeError):
    """A port or a host cannot be listened on, or must not be as things stand."""

    exit_code = 2


class TlsFileError(ServeError):
    """A certificate or a key that the server was given cannot be used."""

    exit_code = 2


class LogFileError(ServeError):
    """The server's log cannot be written where it was asked for."""

    exit_code = 2


@dataclass(frozen=True)
class ModelFailure:
    """One model that did not load, and the reason in one line."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"model {self.model!r} failed to load: {self.reason}"


class ModelLoadError(ServeError):
    """One or more models did not load."""

    def __init__(self, failures: Sequence[ModelFailure], log_path: Path) -> None:
        self.failures = tuple(failures)
        self.log_path = log_path
        lines = "\n  ".join(str(failure) for failure in self.failures)
        super().__init__(f"{lines}\n  the whole log is in {log_path}")


class NotReadyError(ServeError):
    """The server is up, but no embedding came back from it."""


class ServerDiedError(ServeError):
    """The server ended by itself."""
