"""A model's own counters on Triton's metrics port, for what Triton itself cannot see from outside.

Telling Triton a number is a round trip to its process, so a thread tells the sums a few times a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils
from clip_board import say

PERIOD_S = 0.2

# Never deleted, also when the model is unloaded. Instances of a model, and a model that is loaded again while the old
# one still ends, get the same counter from Triton; whoever deletes it first leaves the others with freed memory,
# and the next count crashes the server (seen on 2.51). So a counter stays on the port and goes on counting.
_kept: list[Any] = []


class Metrics:
    """Prometheus counters that follow sums which a model keeps. A server that takes none serves as well without.

    Args:
        args: those of the model's `initialize`.
        helps: by the counter's name, what it counts.
        read: the sums since the model was loaded, by name; called from another thread.
    """

    def __init__(
        self, args: Mapping[str, str], helps: Mapping[str, str], read: Callable[[], Mapping[str, float]]
    ) -> None:
        self._read = read
        self._told = dict.fromkeys(helps, 0.0)
        self._ended = threading.Event()
        self._metrics: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        try:
            self._create(args, helps)
        except Exception as error:  # metrics are off, or the server is too old for them
            say(f"{args['model_name']} has no metrics of its own: {error}")
        else:
            self._thread.start()

    def close(self) -> None:
        """Tell the last sums."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _create(self, args: Mapping[str, str], helps: Mapping[str, str]) -> None:
        labels = {"model": args["model_name"], "version": args["model_version"]}
        for name, text in helps.items():
            family = pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            _kept.append(family)
            self._metrics[name] = family.Metric(labels=labels)
            _kept.append(self._metrics[name])

    def _follow(self) -> None:
        try:
            while not self._ended.wait(PERIOD_S):
                self._tell()
            self._tell()
        except Exception as error:
            say(f"no more metrics: {error}")

    def _tell(self) -> None:
        for name, total in self._read().items():
            if total > self._told[name]:
                self._metrics[name].increment(total - self._told[name])
                self._told[name] = total
