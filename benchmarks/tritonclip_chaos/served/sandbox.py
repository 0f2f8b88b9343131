"""Small file systems of a server's own, so that they can be filled, and what is left in them is its."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

_SHM = "/dev/shm"
SHM_MB, LOG_KB = 1024, 512
_WAIT_S = 10.0
# It ends when its input does, which is at the latest when this process is gone.
_HOLDER = f"""
mount -t tmpfs -o "size=$2m,mode=1777" tmpfs {_SHM} && mount -t tmpfs -o size={LOG_KB}k tmpfs "$1" \\
  && echo ready && read -r end
"""


class Sandbox:
    """A mount namespace with its own /dev/shm and its own log folder; nothing is seen of it outside.

    A context manager. Where the machine allows none, `reason` says so, and the server runs as it is.

    Args:
        log_folder: an empty folder, which becomes a file system of 512 KB.
        shm_mb: megabytes of its /dev/shm.
    """

    def __init__(self, log_folder: Path, shm_mb: int = SHM_MB) -> None:
        self._log_folder = log_folder
        self._shm_mb = shm_mb
        self._holder: subprocess.Popen[bytes] | None = None
        self.reason = ""

    def __enter__(self) -> Sandbox:
        # As root no namespace of users is needed, and in many containers none can be had.
        flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
        command = ["unshare", *flags, "sh", "-c", _HOLDER, "sh", str(self._log_folder), str(self._shm_mb)]
        try:
            self._holder = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self.reason = f"no private file systems: unshare cannot be run ({error.strerror})"
            return self
        assert self._holder.stdout is not None
        readable, _, _ = select.select([self._holder.stdout], [], [], _WAIT_S)
        if not (readable and self._holder.stdout.read(5) == b"ready"):
            self.reason = "no private file systems: this machine does not let a process mount a tmpfs of its own"
            self._end()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def wrap(self, command: list[str]) -> list[str]:
        """The command, run inside."""
        if self._holder is None:
            return command
        flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--preserve-credentials"]
        return [shutil.which("nsenter") or "nsenter", f"--target={self._holder.pid}", *flags, "--", *command]

    @property
    def shared_memory(self) -> Path | None:
        """Its /dev/shm, as seen from outside; None where it has none of its own."""
        return self._outside(_SHM)

    @property
    def logs(self) -> Path | None:
        """Its log folder, as seen from outside; None where it has none of its own."""
        return self._outside(str(self._log_folder))

    def _outside(self, path: str) -> Path | None:
        return None if self._holder is None else Path(f"/proc/{self._holder.pid}/root{path}")

    def _end(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.close()
            holder.stdout.close()
            try:
                holder.wait(timeout=_WAIT_S)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()


def fill(folder: Path) -> Path:
    """Fill the file system of `folder` to its last byte; returns the file to remove again."""
    path = folder / "filled"
    with path.open("wb", buffering=0) as file:
        block = bytes(1 << 20)
        while block:
            try:
                file.write(block)
            except OSError:
                # Smaller pieces, until not even one byte fits.
                block = block[: len(block) // 2]
    return path
