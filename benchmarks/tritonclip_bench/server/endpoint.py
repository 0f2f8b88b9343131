"""A lean gRPC connection to Triton, and what the server says about itself.

The load generator must cost little, so it calls the generated stubs without the client's comfort.
Under gevent, `grpc.experimental.gevent.init_gevent()` comes before the first channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_bench.errors import BenchError, ServerUnavailableError
from tritonclip_client.options import proxy_arguments
from tritonclip_client.spec import ServingSpec

PROBE_TIMEOUT_S = 5.0
ENTRY_POINTS = ("embed_image", "embed_text", "clip")
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A connection of its own for every user, as real callers have.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class ServerInfo:
    """What the server says about itself.

    Attributes:
        version: of Triton.
        spec: the serving spec.
        max_batch_size: by entry point; 0 where the model has no batch axis.
    """

    version: str
    spec: ServingSpec
    max_batch_size: dict[str, int] = field(default_factory=dict)


def connect(address: str) -> tuple[grpc.Channel, service_pb2_grpc.GRPCInferenceServiceStub]:
    """A channel to close later, and the stub on it. Nothing is sent yet."""
    channel = grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *proxy_arguments(address)])
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def describe(address: str, timeout_s: float = PROBE_TIMEOUT_S) -> ServerInfo:
    """Ask the server at `address` (HOST:PORT) for its version and its models.

    Raises:
        ServerUnavailableError: nothing answers there, or the models are not loaded.
        BenchError: what answers serves no CLIP of ours.
        tritonclip_client.errors.ProtocolError: its serving spec is not one that this version reads.
    """
    channel, stub = connect(address)
    try:
        metadata = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=timeout_s)
        configs = {
            name: stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=timeout_s).config
            for name in ENTRY_POINTS
        }
    except grpc.RpcError as error:
        raise _unavailable(address, error) from None
    finally:
        channel.close()
    parameters = configs["embed_image"].parameters
    if "serving_spec" not in parameters:
        raise BenchError(f"the models at {address} carry no serving_spec; serve what `tritonclip export` wrote")
    spec = ServingSpec.from_json(parameters["serving_spec"].string_value)
    limits = {name: config.max_batch_size for name, config in configs.items()}
    return ServerInfo(metadata.version, spec, limits)


def _unavailable(address: str, error: grpc.RpcError) -> ServerUnavailableError:
    reason = " ".join(str(error.details()).split())
    return ServerUnavailableError(
        f"no ready server at {address} ({reason[:200]}); start one with `tritonclip serve DIR`, "
        "or give its gRPC address, HOST:PORT, with --address"
    )
