"""The processes of a server: who they are, and what memory and handles they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Set for the server under test and inherited by whatever it starts, so that even an orphan is known.
MARK = "TRITONCLIP_CHAOS"
STUB = "triton_python_backend_stub"
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Stub:
    """The process of one instance of a Python model.

    Attributes:
        model: its name in the repository.
        instance: as Triton calls it, such as `preprocess_0_1`.
        pid: of the process.
        folder: of the files that it was loaded from, as the server names it.
    """

    model: str
    instance: str
    pid: int
    folder: Path


def descendants(pid: int) -> list[psutil.Process]:
    """A process and all that it started, as far as they live."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [process for process in (root, *root.children(recursive=True)) if _lives(process)]
    return []


def tritonserver(pid: int) -> int | None:
    """The process id of the tritonserver below `pid`, or of `pid` itself; None where there is none."""
    return next((process.pid for process in descendants(pid) if _program(process) == "tritonserver"), None)


def stubs(pid: int) -> list[Stub]:
    """The Python models' processes below `pid`, by their instances' names."""
    found = []
    for process in descendants(pid):
        with suppress(psutil.Error, IndexError):
            words = process.cmdline()
            # Its arguments: model.py, memory, two sizes, parent, library, handle, instance, kind of runtime.
            if Path(words[0]).name == STUB:
                folder = Path(words[1]).parent
                found.append(Stub(folder.parent.name, words[-2], process.pid, folder))
    return sorted(found, key=lambda stub: stub.instance)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that were started with the mark in their environment, whoever their parent is now."""
    wanted = f"{MARK}={mark}".encode()
    return [process for process in psutil.process_iter() if wanted in _environment(process) and _lives(process)]


def pss_mb(processes: Iterable[psutil.Process]) -> float:
    """Megabytes that processes hold together; what several share counts once (proportional set size)."""
    total = 0
    for process in processes:
        with suppress(OSError):
            match = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_bytes())
            total += int(match[1]) if match else 0
    return total * 1024 / 1e6


def handles(processes: Iterable[psutil.Process]) -> int:
    """Open file handles of processes."""
    total = 0
    for process in processes:
        with suppress(OSError):
            total += sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())
    return total


def _environment(process: psutil.Process) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    return []


def _program(process: psutil.Process) -> str:
    with suppress(psutil.Error, IndexError):
        return Path(process.cmdline()[0]).name
    return ""


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    return False
