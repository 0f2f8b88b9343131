"""What the blocking and the asyncio client have in common."""

from __future__ import annotations

from collections.abc import Mapping

from .flows import ClipFlows
from .options import DEFAULT_ADDRESS, DEFAULT_MAX_IN_FLIGHT, DEFAULT_TIMEOUT_S, Options, Tls


class BaseClient:
    """Holds the settings and the flows; a client carries the flows' steps out."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: bool = True,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._options = Options(address, timeout_s, retry, max_in_flight, tls, headers)
        self._flows = ClipFlows(self._options)
        self._headers = self._options.sent_headers()
        self._connection = self._options.connection()
        self._start()

    def _start(self) -> None:
        raise NotImplementedError

    @property
    def truncated_texts(self) -> int:
        """How many texts were longer than the model's context and were cut, over all calls of this client."""
        return self._flows.truncated_texts
