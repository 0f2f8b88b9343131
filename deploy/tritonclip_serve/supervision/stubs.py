"""Finds the processes of the Python models below a tritonserver."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritonclip_serve.process import stat_fields

# How Triton starts one: program, model file, region of shared memory, …, instance, how it was loaded.
_PROGRAM = b"triton_python_backend_stub"
_MODEL_FILE, _INSTANCE = 1, -2
_PARENT = 1


@dataclass(frozen=True)
class Stub:
    """The process of one instance of a Python model."""

    pid: int
    model: str
    instance: str


class StubFinder:
    """Finds the stubs of one server; each process of the machine is looked at once."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._known: set[int] = set()

    def new(self) -> list[Stub]:
        """Stubs that were not there at the last call."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 (often called)
        found = [(pid, self._look(pid)) for pid in sorted(present - self._known)]
        # What has not become a stub yet, between its fork and its program, is looked at again.
        self._known = present - {pid for pid, stub in found if stub is None and self._is_child(pid)}
        return [stub for _, stub in found if stub is not None]

    def _is_child(self, pid: int) -> bool:
        fields = stat_fields(pid)
        return bool(fields) and int(fields[_PARENT]) == self._server_pid

    def _look(self, pid: int) -> Stub | None:
        if not self._is_child(pid):
            return None
        with suppress(OSError):
            return parse(pid, Path(f"/proc/{pid}/cmdline").read_bytes())
        return None


def parse(pid: int, command_line: bytes) -> Stub | None:
    """A stub from its command line, as /proc has it; None where it is another program's."""
    words = command_line.rstrip(b"\0").split(b"\0")
    if not words[0].endswith(_PROGRAM) or len(words) < 4:
        return None
    model_file = Path(os.fsdecode(words[_MODEL_FILE]))
    return Stub(pid, model_file.parent.parent.name, os.fsdecode(words[_INSTANCE]))
