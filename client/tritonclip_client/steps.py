"""What a call does, apart from how it is carried out.

A *flow* is a generator that yields steps and is sent their answers. `flows.py` holds every call of the
client as a flow; `client.py` carries the steps out with blocking calls, `aio.py` with asyncio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from .retry import Deadline

T = TypeVar("T")


@dataclass(frozen=True)
class Rpc:
    """One call over gRPC; answered with what the method returns.

    Attributes:
        method: the name of a method that tritonclient's sync and asyncio clients both have.
        arguments: its keyword arguments.
        deadline: of the whole call.
        size: how large the request is, in values of its tensors, where it has some.
        limit_s: seconds after which this attempt is given up, at the latest with the call.
    """

    method: str
    arguments: Mapping[str, Any]
    deadline: Deadline
    size: int = 0
    limit_s: float = math.inf

    @property
    def kind(self) -> tuple[str, str, int]:
        """Requests of one kind take about the same time: one model, and sizes within a factor of two."""
        return self.method, str(self.arguments.get("model_name")), self.size.bit_length()

    def timing(self) -> dict[str, Any]:
        """The arguments of tritonclient that end the attempt, and tell the server how long an answer has a use."""
        left_s = self.deadline.remaining()
        here = {"client_timeout": min(self.limit_s, left_s)}
        # In microseconds; 0 would mean that it may take for ever.
        return {**here, "timeout": max(1, int(left_s * 1e6))} if self.method == "infer" else here


@dataclass(frozen=True)
class Pause:
    """Wait before the next attempt."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Something that may wait for the disk; answered with what `function` returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Gather:
    """Run flows side by side; answered with the list of their results, in order.

    `flows` is consumed as places become free, at most `width` run at a time, and the first that fails
    cancels the others and fails the step.
    """

    flows: Iterator[CallFlow[Any]]
    width: int


CallFlow: TypeAlias = Generator[Rpc | Pause, Any, T]
Flow: TypeAlias = Generator[Rpc | Pause | Work | Gather, Any, T]
