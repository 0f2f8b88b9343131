"""Ends a server without losing a call: nothing new comes in, what runs is answered, and then it is stopped.

Asked to end by a signal, Triton 2.51 refuses the next steps of ensembles that run, and waits in vain for them. So the
models where calls come in are unloaded first: calls that run keep their model until they are answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tritonclip_serve.repository import root_models
from tritonclip_serve.supervision.control import ModelControl

# While this file is in the run's folder, the models that calls come to first refuse them with UNAVAILABLE.
DRAINING = "draining"
_POLL_S = 0.05
# So often in a row nothing may be at work, since calls pass from one model to the next, and models look for the file
# four times a second.
_IDLE_POLLS = 6
# Of the time, what is left for calls to be refused by the models, and not with "no available versions".
_REFUSING_SHARE, _REFUSING_MOST_S = 0.25, 2.0
# Calls that were lost with a dead model count as running for ever.
_LOST_IDLE_S = 1.0


def drain(
    control: ModelControl,
    repository: Path,
    run_dir: Path,
    is_idle: Callable[[], bool],
    lost_calls: bool,
    seconds: float,
) -> bool:
    """Let no new calls in, and wait until those that run are answered.

    Args:
        run_dir: the run's folder.
        is_idle: whether no Python model is at work now.
        lost_calls: whether calls were lost before, which Triton still counts.
        seconds: how long to wait at most.

    Returns:
        Whether all were answered.
    """
    begun = time.monotonic()
    deadline = begun + seconds
    with suppress(OSError):
        (run_dir / DRAINING).touch()
    _wait(is_idle, begun + min(_REFUSING_MOST_S, _REFUSING_SHARE * seconds), _IDLE_POLLS)
    roots = root_models(repository)
    control.unload(roots)
    idle_since: float | None = None
    while not control.unloaded(roots):
        now = time.monotonic()
        idle_since = (idle_since or now) if is_idle() else None
        if lost_calls and idle_since is not None and now - idle_since > _LOST_IDLE_S:
            return True
        if now >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _wait(is_idle: Callable[[], bool], until: float, polls: int) -> None:
    """Until nothing was at work `polls` times in a row."""
    quiet = 0
    while quiet < polls and time.monotonic() < until:
        quiet = quiet + 1 if is_idle() else 0
        time.sleep(_POLL_S)
