"""A real gRPC server that speaks Triton's protocol, for faults that a real Triton cannot be made to give.

Its towers turn bytes into a unit vector that depends on every byte; `similarity` and `clip` score
them as a CLIP does. A text of more words than the context is called truncated, and split into pieces of as many
words. What each test needs to go wrong it plants in `on_infer`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

WIDTH = 16
SCALE = 10.0
CONTEXT = 77
SPEC = {
    "name": "demo",
    "architecture": "ViT-B-32",
    "embedding_dim": WIDTH,
    "image": {
        "height": 64,
        "width": 64,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": [0, 0, 0],
    },
    "text": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "buckets": [16, 32, 77],
        "pad_id": 0,
        "sot_id": 49406,
        "eot_id": 49407,
        "clean": "lower",
        "pooling": "argmax",
    },
    "scoring": {"kind": "softmax", "logit_scale": SCALE, "logit_bias": 0.0},
    "precision": "float32",
    "runtime": "onnxruntime-python",
    "fingerprint": "0" * 64,
}


def vector(data: bytes) -> np.ndarray:
    """The embedding of some bytes: float32 [WIDTH], unit length."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(WIDTH)
    return (values / np.linalg.norm(values)).astype(np.float32)


def vectors(items: Sequence[bytes]) -> np.ndarray:
    """float32 [len(items), WIDTH]."""
    return np.stack([vector(item) for item in items])


def truncated(texts: Sequence[bytes]) -> np.ndarray:
    """bool [len(texts), 1]."""
    return np.array([len(text.split()) > CONTEXT for text in texts]).reshape(-1, 1)


def pieces(text: bytes) -> list[bytes]:
    """A text that fits as it stands, or runs of as many words as fit."""
    words = text.split()
    runs = [b" ".join(words[start : start + CONTEXT]) for start in range(0, len(words), CONTEXT)]
    return runs if len(runs) > 1 else [text]


def split_answer(parts: Sequence[Sequence[bytes]]) -> dict[str, np.ndarray]:
    """What `split_text` answers for texts of these parts."""
    flat = [piece for part in parts for piece in part]
    return {
        "chunks": np.frombuffer(b"".join(flat), np.uint8),
        "lengths": np.array([len(piece) for piece in flat], np.int32),
        "owner": np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
    }


def ranked(images: Sequence[bytes], classes: int) -> dict[str, np.ndarray]:
    """What a classifier answers for some images: all classes, best first."""
    logits = vectors(images)[:, :classes]
    order = np.argsort(-logits, axis=1)
    logits = np.take_along_axis(logits, order, axis=1)
    return {"class_indices": order.astype(np.int32), "logits": logits, "probabilities": softmax(logits)}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@dataclass
class Call:
    """One ModelInfer that arrived."""

    model: str
    tensors: dict[str, np.ndarray]
    context: grpc.ServicerContext
    time_left_s: float
    timeout_us: int

    @property
    def items(self) -> list[bytes]:
        """The BYTES items of a request to one tower."""
        (tensor,) = self.tensors.values()
        return [bytes(item) for item in tensor.ravel()]


@dataclass
class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The servicer, with the knobs and the counters of the tests."""

    image_limit: int = 4
    text_limit: int = 6
    spec: dict[str, object] | None = field(default_factory=lambda: dict(SPEC))
    live: bool = True
    not_ready: frozenset[str] = frozenset()
    classifiers: tuple[str, ...] | None = None
    on_infer: Callable[[Call], None] = lambda call: None
    answer_width: int = WIDTH
    text_outputs: tuple[str, ...] = ("embedding", "truncated")
    split_limits: tuple[int, int] = (6, 1 << 20)
    labels: list[str] = field(default_factory=lambda: ["cat", "dog", "bird"])
    version: str = "1"
    address: str = ""
    calls: list[Call] = field(default_factory=list)
    config_requests: list[str] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def models(self) -> list[str]:
        """The models of the requests so far."""
        return [call.model for call in self.calls]

    # Names of the protocol.
    def ServerMetadata(self, request, context):  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="0")

    def ServerLive(self, request, context):  # noqa: N802
        return service_pb2.ServerLiveResponse(live=self.live)

    def ModelReady(self, request, context):  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name not in self.not_ready)

    def RepositoryIndex(self, request, context):  # noqa: N802
        if self.classifiers is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-…'")
        response = service_pb2.RepositoryIndexResponse()
        for name in ("embed_image", *self.classifiers):
            response.models.add(name=name, version="1", state="READY")
        return response

    def ModelConfig(self, request, context):  # noqa: N802
        self.config_requests.append(request.name)
        response = service_pb2.ModelConfigResponse()
        limits = {"embed_image": self.image_limit, "embed_text": self.text_limit}
        response.config.max_batch_size = limits.get(request.name, 0)
        for name in self.text_outputs:
            response.config.output.add(name=name)
        parameters = {"max_batch": str(self.split_limits[0]), "max_request_bytes": str(self.split_limits[1])}
        if request.name.startswith("classify_"):
            response.config.max_batch_size = self.image_limit
            parameters = {"labels": json.dumps(self.labels), "version": self.version}
        for name, value in parameters.items():
            response.config.parameters[name].string_value = value
        if self.spec is not None:
            response.config.parameters["serving_spec"].string_value = json.dumps(self.spec)
        return response

    def ModelInfer(self, request, context):  # noqa: N802
        timeout_us = request.parameters["timeout"].int64_param
        left_s = context.time_remaining() or float("inf")
        call = Call(request.model_name, _tensors(request), context, left_s, timeout_us)
        with self._lock:
            self.calls.append(call)
            self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self.on_infer(call)
            return self._answer(request, call)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, request, call: Call):
        outputs = self._outputs(call)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=self.version)
        # As Triton does: all of them, where none is named.
        for name in [wanted.name for wanted in request.outputs] or outputs:
            array = outputs[name]
            response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            is_text = array.dtype == np.object_
            response.raw_output_contents.append(serialize_byte_tensor(array).item() if is_text else array.tobytes())
        return response

    def _outputs(self, call: Call) -> dict[str, np.ndarray]:
        for kind, limit in (("image", self.image_limit), ("text", self.text_limit)):
            if kind in call.tensors:
                _refuse_bad_items(call, kind, limit)
        if call.model in ("embed_image", "embed_text"):
            return {"embedding": vectors(call.items)[:, : self.answer_width], "truncated": truncated(call.items)}
        if call.model == "split_text":
            parts = [pieces(text) for text in call.items]
            return split_answer(parts)
        if call.model.startswith("classify_"):
            return ranked(call.items, len(self.labels))
        if call.model == "clip":
            image, text = (vectors([bytes(item) for item in call.tensors[kind].ravel()]) for kind in ("image", "text"))
        else:
            image, text = call.tensors["image_embedding"], call.tensors["text_embedding"]
        logits = np.float32(SCALE) * image @ text.T
        return {
            "logits": logits,
            "probabilities": softmax(logits),
            "image_features": image,
            "text_features": text,
            "truncated": truncated([bytes(item) for item in call.tensors.get("text", np.array([])).ravel()]),
        }


def fail(call: Call, status: grpc.StatusCode, message: str) -> None:
    """End a call with a status."""
    call.context.abort(status, message)


def fail_first(count: int, status: grpc.StatusCode, message: str = "planted") -> Callable[[Call], None]:
    """An `on_infer` whose first `count` calls fail."""
    left = iter(range(count))

    def on_infer(call: Call) -> None:
        if next(left, None) is not None:
            fail(call, status, message)

    return on_infer


@contextmanager
def serving(server: Server | None = None, workers: int = 16, port: int = 0) -> Iterator[Server]:
    """Serve on a port of the loopback interface, 0 for a free one, until the block ends."""
    server = server or Server()
    with futures.ThreadPoolExecutor(workers) as pool:
        grpc_server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, grpc_server)
        server.address = f"127.0.0.1:{grpc_server.add_insecure_port(f'127.0.0.1:{port}')}"
        grpc_server.start()
        try:
            yield server
        finally:
            grpc_server.stop(None).wait()


def _refuse_bad_items(call: Call, kind: str, limit: int) -> None:
    items = [bytes(item) for item in call.tensors[kind].ravel()]
    if len(items) > limit:
        fail(call, grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {limit} for '{call.model}'")
    for index, item in enumerate(items):
        if item.startswith(b"bad"):
            message = f"in ensemble '{call.model}', {kind}[{index}]: {len(item)} bytes; allowed: good; send good"
            fail(call, grpc.StatusCode.INVALID_ARGUMENT, message)


def _tensors(request) -> dict[str, np.ndarray]:
    def read(tensor, content: bytes) -> np.ndarray:
        flat = deserialize_bytes_tensor(content) if tensor.datatype == "BYTES" else np.frombuffer(content, np.float32)
        return flat.reshape(tuple(tensor.shape))

    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: read(tensor, content) for tensor, content in pairs}
