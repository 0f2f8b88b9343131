"""Unloads and loads models of a running server, as only the holder of its key can."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from tritonclient.utils import InferenceServerException

from tritonclip_serve import readiness
from tritonclip_serve.edge.access import Access
from tritonclip_serve.errors import NotReadyError
from tritonclip_serve.supervision.judgement import PATIENCE

_POLL_S = 0.01
_CALL_S = 5.0
# Away from service for longer, all models are better off with a new server.
_UNLOAD_LIMIT_S = 1.5
_PROBE_LIMIT_S = 5.0
# States of a version in Triton's index: an unloading one still has calls to answer.
_AT_WORK = ("READY", "UNLOADING")


class StuckError(Exception):
    """The server does not unload a model: only a new server helps."""


class LoadError(Exception):
    """The server does not load a model."""


class ModelControl:
    """Loads models of one server again.

    Args:
        access: how to reach it.
        address: `host:port` of the gRPC endpoint.
        headers: with the key.
        probes: what has to be embedded after models came back.
        load_timeout_s: how long one model may load.
        computes: whether the server is at work, and only slow to answer.
    """

    def __init__(
        self,
        access: Access,
        address: str,
        headers: Mapping[str, str],
        probes: tuple[readiness.Probe, ...] = (),
        load_timeout_s: float = 120.0,
        computes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._access = access
        self._address = address
        self._headers = dict(headers)
        self._probes = probes
        self._load_timeout_s = load_timeout_s
        self._computes = computes
        self._pulse: Any = None

    def reload(self, models: Collection[str]) -> dict[str, str]:
        """Unload models whose processes died, and load them again; ensembles around them follow by themselves.

        Returns:
            Why by model, for those that did not load.

        Raises:
            StuckError: a model cannot be unloaded, or the server does not answer.
        """
        with self._client() as client:
            self._unload(client, models)
            return self._load(client, models)

    def prove(self) -> None:
        """Have every entry point that is ready embed something; an overloaded server has proven itself by saying so.

        Raises:
            LoadError: it does not embed.
        """
        with self._client() as client:
            ready = [probe for probe in self._probes if _is_ready(client, probe.model)]
        try:
            readiness.ask(self._access, self._address, tuple(map(_fresh, ready)), _PROBE_LIMIT_S)
        except readiness.StillStartingError:
            return
        except NotReadyError as error:
            raise LoadError(str(error)) from error

    def unload(self, models: Collection[str]) -> None:
        """Let no new calls in to some models; those that run go on. Failures are left to `unloaded`."""
        with self._client() as client, suppress(InferenceServerException):
            for model in models:
                client.unload_model(model, headers=self._headers, client_timeout=_CALL_S)

    def unloaded(self, models: Collection[str]) -> bool:
        """Whether nothing runs any more in models for which `unload` was called, or nobody can tell."""
        try:
            with self._client() as client:
                index = client.get_model_repository_index(headers=self._headers, client_timeout=_CALL_S)
        except InferenceServerException:
            return True
        return all(model.state not in _AT_WORK for model in index.models if model.name in models)

    def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers at all; from one thread at a time."""
        # A channel costs more than the question, which is asked for ever.
        self._pulse = self._pulse or self._access.client(self._address)
        try:
            return bool(self._pulse.is_server_live(client_timeout=timeout_s))
        except InferenceServerException:
            return False

    def close(self) -> None:
        """Ask no more."""
        if self._pulse is not None:
            self._pulse.close()

    def _unload(self, client: Any, models: Collection[str]) -> None:
        limit_s = _UNLOAD_LIMIT_S * (PATIENCE if self._computes() else 1)
        deadline = time.monotonic() + limit_s
        try:
            for model in models:
                client.unload_model(model, headers=self._headers, client_timeout=limit_s)
            waiting = set(models)
            while waiting:
                waiting = {model for model in waiting if _is_ready(client, model)}
                if waiting and time.monotonic() > deadline:
                    raise StuckError(f"{', '.join(sorted(waiting))} did not unload within {limit_s:g} s")
                time.sleep(_POLL_S if waiting else 0)
        except InferenceServerException as error:
            raise StuckError(f"unloading failed: {_first_line(error)}") from error

    def _load(self, client: Any, models: Collection[str]) -> dict[str, str]:
        failed = {}
        for model in models:
            try:
                client.load_model(model, headers=self._headers, client_timeout=self._load_timeout_s)
                if not _is_ready(client, model):
                    failed[model] = "it is not ready after it loaded"
            except InferenceServerException as error:
                failed[model] = _first_line(error)
        return failed

    @contextmanager
    def _client(self) -> Iterator[Any]:
        # A channel of its own: one that has seen a server die waits before it connects again.
        client = self._access.client(self._address)
        try:
            yield client
        finally:
            client.close()


def _is_ready(client: Any, model: str) -> bool:
    return bool(client.is_model_ready(model, client_timeout=_CALL_S))


def _fresh(probe: readiness.Probe) -> readiness.Probe:
    """A text that no cache has an answer for."""
    if probe.tensor != "text":
        return probe
    return replace(probe, payload=probe.payload + b" " + secrets.token_hex(4).encode())


def _first_line(error: InferenceServerException) -> str:
    return str(error.message() or error).splitlines()[0][:300]
