"""Tells from what is seen of a process whether it hangs."""

from __future__ import annotations

import os
import signal

from tritonclip_serve.supervision.boards import Reading
from tritonclip_serve.supervision.events import Cause

# Between two looks at all processes. Triton gives up a stopped process for good after 1 s with a request for it.
TICK_S = 0.2
# A heart beats every 0.25 s. On a machine without a free core a thread may wait for long.
HEARTBEAT_LIMIT_S = 1.5
# A supervisor that was late by so much has not had a core either (or the machine slept), and judges nobody for a while.
LATE_S = 0.5
# A process that computes gets more of both: native code may hold the interpreter's lock, and with it the heart, and the
# first large batch takes longer than all before.
PATIENCE = 10
IDLE_CORES = 0.05
_STOPPED = "T"


class Clock:
    """Tells whether this process has been running itself: only then silence of others means something."""

    def __init__(self, now: float) -> None:
        self._last = now
        self._judging_from = now

    def tick(self, now: float) -> bool:
        """Note a look at `now`; whether hearts may be judged."""
        if now - self._last > TICK_S + LATE_S:
            self._judging_from = now + HEARTBEAT_LIMIT_S
        self._last = now
        return now >= self._judging_from


def hang(
    state: str, reading: Reading | None, now: float, judge_hearts: bool = True, cores: float = 0.0
) -> Cause | None:
    """Why a process counts as hung; None: it does not.

    Args:
        state: the letter of /proc/PID/stat.
        reading: of its board; None where it has none.
        now: of CLOCK_MONOTONIC, seconds.
        judge_hearts: whether silence means something: the model is loaded, and this process had a core itself lately.
        cores: how many of them the process used of late.
    """
    if state == _STOPPED:
        return Cause("stopped", "stopped by a signal")
    if reading is None or not judge_hearts:
        return None
    patience = PATIENCE if cores > IDLE_CORES else 1
    silent = now - reading.heartbeat
    if reading.heartbeat and silent > HEARTBEAT_LIMIT_S * patience:
        return Cause("hung", f"hung for {silent:.1f} s")
    busy = now - reading.busy_since
    limit_s = reading.limit_s * patience
    if reading.busy_since and reading.limit_s and busy > limit_s:
        return Cause("hung", f"hung in one piece of work for {busy:.1f} s, limit {limit_s:.1f} s")
    return None


def exit_cause(code: int) -> Cause:
    """How a process ended, from its exit code as /proc/PID/stat has it (as of `waitpid`)."""
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        names = {one.value: one.name for one in signal.Signals}
        phrase = f"signal {names.get(number, number)}"
    else:
        phrase = f"exit status {os.WEXITSTATUS(code)}"
    return Cause(phrase, phrase)
