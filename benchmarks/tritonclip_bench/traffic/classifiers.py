"""The classifiers that are baked into a served repository, and which of them a load test asks."""

from __future__ import annotations

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server.endpoint import PROBE_TIMEOUT_S, connect
from tritonclip_bench.traffic.scenarios import CLASSIFIER_PREFIX


def choose_classifier(address: str, name: str | None) -> tuple[str, int]:
    """The model of the classifier `name`, by default the only one that is served, and its largest batch.

    Raises:
        BenchError: there is none, no such, or several to choose from.
    """
    channel, stub = connect(address)
    try:
        model = CLASSIFIER_PREFIX + _chosen(served_classifiers(stub), name)
        config = stub.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=PROBE_TIMEOUT_S).config
    except grpc.RpcError as error:
        raise BenchError(
            f"the server does not tell its classifiers ({error.code().name}); it has to allow the call ModelStatistics"
        ) from None
    finally:
        channel.close()
    return model, int(config.max_batch_size)


def served_classifiers(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> list[str]:
    """The names of the classifiers that are loaded, without their prefix."""
    # Statistics of all models: the repository's index is closed to callers.
    statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=PROBE_TIMEOUT_S)
    names = {model.name for model in statistics.model_stats if model.name.startswith(CLASSIFIER_PREFIX)}
    return sorted(name.removeprefix(CLASSIFIER_PREFIX) for name in names)


def _chosen(served: list[str], name: str | None) -> str:
    listed = ", ".join(served)
    if not served:
        raise BenchError(
            "the server has no classifier; build one into its repository with `tritonclip classifier build`, and "
            "start it again"
        )
    if name is None and len(served) > 1:
        raise BenchError(f"the server has {len(served)} classifiers: {listed}; choose one with --classifier NAME")
    if name is not None and name not in served:
        raise BenchError(f"--classifier {name}: the server has no such classifier; it has {listed}")
    return name or served[0]
